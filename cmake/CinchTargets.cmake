# One function per kind of target, so that every folder's CMakeLists.txt is a single line or two.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

add_library(cinch_flags INTERFACE)
target_compile_options(cinch_flags INTERFACE -Wall -Wextra -Werror -Wshadow -Wnon-virtual-dtor)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(cinch_flags INTERFACE -Wno-restrict)  # false positives in std::string (GCC bug 105329)
endif()
target_include_directories(cinch_flags INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
foreach(sanitizer IN LISTS CINCH_SANITIZE)
  target_compile_options(cinch_flags INTERFACE -fsanitize=${sanitizer} -fno-omit-frame-pointer)
  target_link_options(cinch_flags INTERFACE -fsanitize=${sanitizer})
endforeach()
if(CINCH_SANITIZE)
  # Instrumented code makes gcc warn of uninitialized members inside of its own headers (std::regex).
  target_compile_options(cinch_flags INTERFACE -fno-sanitize-recover=all $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
endif()
if(CINCH_FUZZ)
  target_compile_options(cinch_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# cinch_library(<folder> [TORCH] DEPENDS <targets>...)
# A library of all sources of the folder. TORCH: uses ATen through the shared precompiled header.
function(cinch_library name)
  cmake_parse_arguments(ARG "TORCH" "" "DEPENDS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "/cuda/")  # of plug-ins (CinchCuda.cmake)
  add_library(cinch_${name} STATIC ${sources})
  target_link_libraries(cinch_${name} PUBLIC cinch_flags ${ARG_DEPENDS})
  if(ARG_TORCH)
    cinch_use_torch(cinch_${name})
  endif()
endfunction()

# cinch_test(<folder> [TORCH] DEPENDS <targets>...): one test binary per library, named <folder>_test
function(cinch_test name)
  cmake_parse_arguments(ARG "TORCH" "" "DEPENDS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${name}/*_test.cpp)
  if(NOT sources)
    return()
  endif()
  add_executable(${name}_test ${sources})
  target_link_libraries(${name}_test PRIVATE cinch_test_support ${ARG_DEPENDS} GTest::gmock GTest::gtest GTest::gtest_main)
  if(ARG_TORCH)
    cinch_use_torch(${name}_test)
    # The precompiled header is built as for libraries (-fPIC); an executable's own -fPIE would not fit it.
    set_target_properties(${name}_test PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${name}_test PRIVATE -fPIC)
  endif()
  # One ctest entry per source file, as loading LibTorch for every test took most of the time. Apart, one by one: suites
  # named Slow* (label slow) and Cuda* (label cuda), and tests with Real in their name, which need files that may be
  # absent: so they show as skipped.
  set(apart "Slow*:Cuda*:*Real*")
  set(others "${apart}")
  foreach(source IN LISTS sources)
    get_filename_component(file ${source} NAME)
    string(REPLACE "_test.cpp" "" file ${file})
    file(STRINGS ${source} tests REGEX "^TEST(_F|_P)?\\(")
    list(TRANSFORM tests REPLACE "^TEST[_FP]*\\(([A-Za-z0-9_]+),.*" "\\1.*:*/\\1.*")
    list(REMOVE_DUPLICATES tests)
    list(JOIN tests ":" tests)
    add_test(NAME ${name}.${file} COMMAND ${name}_test --gtest_brief=1 "--gtest_filter=${tests}-${apart}"
      WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    string(APPEND others ":${tests}")
    list(APPEND entries ${name}.${file})
  endforeach()
  # Whatever the pattern above does not see, new suites before the next configure among it.
  add_test(NAME ${name}.others COMMAND ${name}_test --gtest_brief=1 "--gtest_filter=-${others}"
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${entries} ${name}.others PROPERTIES LABELS fast TIMEOUT 900)
  foreach(pattern IN ITEMS "fast *Real*-Slow*:Cuda*" "slow Slow*" "cuda Cuda*")
    separate_arguments(pattern)
    list(GET pattern 0 label)
    list(GET pattern 1 filter)
    gtest_discover_tests(${name}_test TEST_FILTER "${filter}" DISCOVERY_MODE PRE_TEST TEST_SUFFIX "" TEST_LIST ${name}_${label}
      WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
      PROPERTIES LABELS "${label}" TIMEOUT 900)
  endforeach()
endfunction()

# One translation unit carries the precompiled ATen header; every torch-using target reuses it.
function(cinch_use_torch target)
  target_link_libraries(${target} PUBLIC cinch::torch_cpu)
  if(NOT TARGET cinch_torch_header)
    file(WRITE ${CMAKE_BINARY_DIR}/torch_header.cpp "// carries the precompiled ATen header\n")
    add_library(cinch_torch_header OBJECT ${CMAKE_BINARY_DIR}/torch_header.cpp)
    target_link_libraries(cinch_torch_header PUBLIC cinch_flags cinch::torch_cpu)
    target_precompile_headers(cinch_torch_header PRIVATE <ATen/ATen.h>)
  endif()
  # The header was compiled with -fPIC; CMake would give executables -fPIE, with which GCC refuses it.
  get_target_property(type ${target} TYPE)
  if(type STREQUAL "EXECUTABLE")
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${target} PRIVATE -fPIC)
  endif()
  target_precompile_headers(${target} REUSE_FROM cinch_torch_header)
endfunction()
