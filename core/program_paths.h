// Where the running program and the files that come with it are.
#pragma once

#include <filesystem>
#include <string>

namespace cinch {

/// The folder of the running executable; empty where the system does not tell.
std::filesystem::path program_folder();

/// A folder of files that come with cinch: "calibration" (the bundled mixture) or "configs" (recipes). In an installed
/// tree ../share/cinch/NAME; in a checkout examples/NAME or NAME of the nearest folder above the program that has it.
/// Empty when there is none.
std::filesystem::path bundled_folder(const std::string& name);

}  // namespace cinch
