# libcinch_cuda.so: everything that needs CUDA. Built when CINCH_CUDA is on and a CUDA 13 compiler and LibTorch's CUDA library are there.
# .cu files include no LibTorch header, so nvcc is run directly: no CUDA language set-up, and the wheels' nvcc works as well as a toolkit's.
set(CINCH_CUDA_ARCHITECTURES 80 90a 120 CACHE STRING "GPU architectures of the plug-in; the last one also as PTX")

# cinch_find_cuda(<variable>): TRUE when the plug-in can be built; says why not.
function(cinch_find_cuda result)
  set(${result} FALSE PARENT_SCOPE)
  file(GLOB from_wheels ${CINCH_TORCH_FOLDER}/../nvidia/cu13/bin ${CINCH_CACHE}/python/lib/python3*/site-packages/nvidia/cu13/bin)
  find_program(CINCH_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin ${from_wheels})
  if(NOT CINCH_NVCC)
    message(STATUS "CUDA plug-in: not built, no nvcc (scripts/setup installs one)")
    return()
  endif()
  execute_process(COMMAND ${CINCH_NVCC} --version OUTPUT_VARIABLE version ERROR_QUIET)
  if(NOT version MATCHES "release 13\\.")
    message(STATUS "CUDA plug-in: not built, ${CINCH_NVCC} is not of CUDA 13")
    return()
  endif()
  get_filename_component(toolkit ${CINCH_NVCC} REALPATH)
  get_filename_component(toolkit ${toolkit} DIRECTORY)
  find_file(CINCH_CUDART libcudart.so.13 NO_DEFAULT_PATH PATHS ${CINCH_TORCH_FOLDER}/../nvidia/cu13/lib ${CINCH_TORCH_FOLDER}/lib
    ${toolkit}/../lib64 ${toolkit}/../lib ${toolkit}/../targets/x86_64-linux/lib)
  if(NOT CINCH_CUDART OR NOT EXISTS ${CINCH_TORCH_FOLDER}/lib/libtorch_cuda.so)
    message(STATUS "CUDA plug-in: not built, this LibTorch has no CUDA libraries")
    return()
  endif()
  message(STATUS "CUDA plug-in: ${CINCH_NVCC}")
  set(${result} TRUE PARENT_SCOPE)
endfunction()

# cinch_cuda_objects(<variable> <sources.cu>...): objects of all architectures. The log of ptxas stays beside each.
function(cinch_cuda_objects result)
  set(flags -std=c++17 -O3 -Xcompiler=-fPIC,-Wall -ccbin ${CMAKE_CXX_COMPILER} -I${PROJECT_SOURCE_DIR} -Xptxas=-v)
  foreach(architecture IN LISTS CINCH_CUDA_ARCHITECTURES)
    list(APPEND flags -gencode=arch=compute_${architecture},code=sm_${architecture})
  endforeach()
  list(GET CINCH_CUDA_ARCHITECTURES -1 newest)
  list(APPEND flags -gencode=arch=compute_${newest},code=compute_${newest})
  set(objects "")
  foreach(source IN LISTS ARGN)
    get_filename_component(name ${source} NAME_WE)
    set(object ${CMAKE_BINARY_DIR}/cuda/${name}.o)
    add_custom_command(OUTPUT ${object} DEPFILE ${object}.d DEPENDS ${source} VERBATIM COMMENT "Compiling ${name}.cu"
      COMMAND ${CMAKE_COMMAND} -DLOG=${CMAKE_BINARY_DIR}/cuda/${name}.ptxas -P ${PROJECT_SOURCE_DIR}/cmake/run_logged.cmake --
        ${CINCH_NVCC} ${flags} -MD -MF ${object}.d -c ${source} -o ${object})
    list(APPEND objects ${object})
  endforeach()
  set(${result} ${objects} PARENT_SCOPE)
endfunction()

# cinch_cuda_plugin(<sources.cu>...)
function(cinch_cuda_plugin)
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/cuda)
  cinch_cuda_objects(objects ${ARGN})
  set(decode ${PROJECT_SOURCE_DIR}/attention/kernels/decode)
  add_library(cinch_cuda SHARED ${objects} ${decode}/tiling.cpp ${decode}/append_job.cpp)
  set_target_properties(cinch_cuda PROPERTIES LINKER_LANGUAGE CXX LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib INSTALL_RPATH "$ORIGIN")
  # libtorch_cuda is needed for what it registers when it is loaded, not for a symbol.
  target_link_libraries(cinch_cuda PRIVATE cinch_flags -Wl,--no-as-needed ${CINCH_TORCH_FOLDER}/lib/libtorch_cuda.so -Wl,--as-needed ${CINCH_CUDART})
  set(tests ${PROJECT_SOURCE_DIR}/tests/attention/cuda)
  file(GLOB decode_tests CONFIGURE_DEPENDS ${tests}/decode_*.cu)
  list(FILTER objects EXCLUDE REGEX "/describe[^/]*$")
  cinch_device_program(decode_device_test SOURCES ${decode_tests} OBJECTS ${objects})
  list(FILTER objects EXCLUDE REGEX "/latent_sm90[^/]*$")  # the program compiles its own, with a watchdog
  cinch_device_program(latent_sm90_device_test SOURCES ${tests}/latent_sm90_device_test.cu OBJECTS ${objects})
endfunction()

# cinch_device_program(<name> SOURCES <.cu>... OBJECTS <.o>...): a test program for machines with a GPU, in one file that needs nothing but a
# driver.
function(cinch_device_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;OBJECTS" ${ARGN})
  get_filename_component(toolkit ${CINCH_NVCC} REALPATH)
  get_filename_component(toolkit ${toolkit} DIRECTORY)
  find_library(CINCH_CUDART_STATIC libcudart_static.a NO_DEFAULT_PATH PATHS ${toolkit}/../lib64 ${toolkit}/../lib
    ${toolkit}/../targets/x86_64-linux/lib ${CINCH_TORCH_FOLDER}/../nvidia/cu13/lib)
  if(NOT CINCH_TESTS OR NOT CINCH_CUDART_STATIC)
    return()
  endif()
  cinch_cuda_objects(objects ${ARG_SOURCES})
  set(decode ${PROJECT_SOURCE_DIR}/attention/kernels/decode)
  add_executable(${name} ${objects} ${ARG_OBJECTS} ${decode}/tiling.cpp ${decode}/reference.cpp ${decode}/page_pack.cpp)
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(${name} PRIVATE cinch_flags ${CINCH_CUDART_STATIC} -static-libstdc++ -static-libgcc pthread dl rt)
endfunction()

# libcinch_nccl.so: GPUs of several processes. Where NCCL's header is (in LibTorch's own wheels, or the system's).
function(cinch_nccl_plugin)
  find_path(CINCH_NCCL_INCLUDE nccl.h HINTS ${CINCH_TORCH_FOLDER}/../nvidia/nccl/include)
  get_filename_component(toolkit ${CINCH_NVCC} REALPATH)
  get_filename_component(toolkit ${toolkit} DIRECTORY)
  find_path(CINCH_CUDA_INCLUDE cusolverDn.h HINTS ${CINCH_TORCH_FOLDER}/../nvidia/cu13/include ${toolkit}/../include)
  if(NOT CINCH_NCCL_INCLUDE OR NOT CINCH_CUDA_INCLUDE)
    message(STATUS "NCCL plug-in: not built, no nccl.h or no CUDA libraries' headers")
    return()
  endif()
  add_library(cinch_nccl SHARED ${PROJECT_SOURCE_DIR}/train/cuda/nccl_group.cpp)
  target_link_libraries(cinch_nccl PRIVATE cinch_flags cinch::torch_cpu -Wl,--no-as-needed ${CINCH_TORCH_FOLDER}/lib/libtorch_cuda.so
    -Wl,--as-needed ${CINCH_TORCH_FOLDER}/lib/libc10_cuda.so)
  target_compile_options(cinch_nccl PRIVATE "SHELL:-idirafter ${CINCH_TORCH_FOLDER}/include/torch/csrc/api/include"
    "SHELL:-isystem ${CINCH_NCCL_INCLUDE}" "SHELL:-isystem ${CINCH_CUDA_INCLUDE}")
  set_target_properties(cinch_nccl PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib INSTALL_RPATH "$ORIGIN")
endfunction()

set(CINCH_HAS_CUDA FALSE)
if(CINCH_CUDA)
  cinch_find_cuda(CINCH_HAS_CUDA)
endif()
if(CINCH_HAS_CUDA)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/attention/kernels/cuda/*.cu
    ${PROJECT_SOURCE_DIR}/model/cuda/*.cu ${PROJECT_SOURCE_DIR}/train/cuda/*.cu)
  cinch_cuda_plugin(${sources})
  cinch_nccl_plugin()
endif()
