#include "src/command.h"

int main(int argc, char** argv) { return cinch::run_program(argc, argv); }
