# The CPU part of LibTorch as cinch::torch_cpu. CUDA libraries are loaded by the plug-in when a CUDA device is asked for, so the program starts fast.
# LibTorch is the first of: CMAKE_PREFIX_PATH (a LibTorch of the user's own, or its share/cmake), CINCH_TORCH (the `torch` folder of a wheel), and
# what scripts/setup installed into the cache folder.
set(candidates "")
string(REPLACE ":" ";" prefixes "$ENV{CMAKE_PREFIX_PATH}")
foreach(prefix IN LISTS CMAKE_PREFIX_PATH prefixes)
  list(APPEND candidates ${prefix} ${prefix}/../..)
endforeach()
list(APPEND candidates ${CINCH_TORCH})
file(GLOB cached ${CINCH_CACHE}/python/lib/python3*/site-packages/torch)
list(APPEND candidates ${cached})

set(CINCH_TORCH_FOLDER "")
foreach(candidate IN LISTS candidates)
  if(EXISTS ${candidate}/include/ATen/ATen.h AND EXISTS ${candidate}/lib/libtorch_cpu.so)
    get_filename_component(CINCH_TORCH_FOLDER ${candidate} REALPATH)
    break()
  endif()
endforeach()
if(NOT CINCH_TORCH_FOLDER)
  message(FATAL_ERROR "LibTorch 2.11 is not found. Run scripts/setup, or name one: -DCMAKE_PREFIX_PATH=/path/to/libtorch")
endif()
message(STATUS "LibTorch: ${CINCH_TORCH_FOLDER}")

add_library(cinch_torch_cpu INTERFACE)
add_library(cinch::torch_cpu ALIAS cinch_torch_cpu)
# After the system's folders: the wheel carries headers of other projects (fmt 12 among them) that must not hide Debian's.
target_compile_options(cinch_torch_cpu INTERFACE "SHELL:-idirafter ${CINCH_TORCH_FOLDER}/include")
target_link_libraries(cinch_torch_cpu INTERFACE ${CINCH_TORCH_FOLDER}/lib/libtorch_cpu.so ${CINCH_TORCH_FOLDER}/lib/libc10.so Threads::Threads)
