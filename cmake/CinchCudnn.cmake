# libcinch_cudnn.so: attention through cuDNN's graph API. Where the frontend's headers (scripts/setup installs them) and
# cuDNN's are. libcudnn itself is opened at run time: the plug-in loads without it and says what is missing.

# cinch_find_cudnn(<variable>): TRUE when the plug-in can be built; says why not.
function(cinch_find_cudnn result)
  set(${result} FALSE PARENT_SCOPE)
  file(GLOB wheels ${CINCH_TORCH_FOLDER}/../include ${CINCH_CACHE}/python/lib/python3*/site-packages/include)
  find_path(CINCH_CUDNN_FRONTEND_INCLUDE cudnn_frontend.h HINTS ${wheels})
  find_path(CINCH_CUDNN_INCLUDE cudnn_graph.h HINTS ${CINCH_TORCH_FOLDER}/../nvidia/cudnn/include)
  get_filename_component(toolkit ${CINCH_NVCC} REALPATH)
  get_filename_component(toolkit ${toolkit} DIRECTORY)
  # cuda_runtime.h is of no use without the compiler's own headers.
  find_path(CINCH_CUDA_RUNTIME_INCLUDE crt/host_config.h HINTS ${toolkit}/../include ${CINCH_TORCH_FOLDER}/../nvidia/cu13/include)
  find_path(CINCH_NVRTC_INCLUDE nvrtc.h HINTS ${CINCH_TORCH_FOLDER}/../nvidia/cu13/include ${toolkit}/../include)
  foreach(include IN ITEMS CUDNN_FRONTEND CUDNN CUDA_RUNTIME NVRTC)
    if(NOT CINCH_${include}_INCLUDE)
      message(STATUS "cuDNN plug-in: not built, its headers are not found (${include}; scripts/setup installs them)")
      return()
    endif()
  endforeach()
  message(STATUS "cuDNN plug-in: frontend in ${CINCH_CUDNN_FRONTEND_INCLUDE}")
  set(${result} TRUE PARENT_SCOPE)
endfunction()

function(cinch_cudnn_plugin)
  set(folder ${PROJECT_SOURCE_DIR}/attention/kernels/cudnn/cuda)
  add_library(cinch_cudnn SHARED ${folder}/cudnn_plugin.cpp ${folder}/graph.cpp ${folder}/library.cpp)
  target_link_libraries(cinch_cudnn PRIVATE cinch_flags ${CMAKE_DL_LIBS})
  target_compile_definitions(cinch_cudnn PRIVATE NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING)
  foreach(include IN ITEMS CUDNN_FRONTEND CUDNN CUDA_RUNTIME NVRTC)
    target_compile_options(cinch_cudnn PRIVATE "SHELL:-isystem ${CINCH_${include}_INCLUDE}")
  endforeach()
  # Nothing of it is hot on the host, and this halves the time that the frontend takes to compile.
  set_source_files_properties(${folder}/graph.cpp PROPERTIES COMPILE_OPTIONS "-O1;-g0")
  # LibTorch carries, and exports, a frontend of another version: neither may get the other's functions.
  set_target_properties(cinch_cudnn PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
    LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/plugin.map)
  target_link_options(cinch_cudnn PRIVATE -Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/plugin.map)
  # Where LibTorch's own libcudnn lies; the one that is loaded already comes first.
  get_filename_component(cudnn ${CINCH_CUDNN_INCLUDE}/../lib ABSOLUTE)
  set_target_properties(cinch_cudnn PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib BUILD_RPATH ${cudnn}
    INSTALL_RPATH "$ORIGIN")
  if(CINCH_TESTS)
    cinch_cudnn_tests()
  endif()
endfunction()

# Plans are built against a stand-in for the driver, which must not get into a process that may use the real one.
function(cinch_cudnn_tests)
  set(folder ${PROJECT_SOURCE_DIR}/tests/attention/cudnn)
  add_library(cinch_driver_stand_in SHARED ${folder}/driver_stand_in.cpp)
  target_link_libraries(cinch_driver_stand_in PRIVATE cinch_flags)
  set_target_properties(cinch_driver_stand_in PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests/driver
    PREFIX "" OUTPUT_NAME libcuda SUFFIX .so.1 NO_SONAME ON LINK_FLAGS -Wl,-soname,libcuda.so.1)
  add_executable(cudnn_plans_test ${folder}/cudnn_plans.cpp ${PROJECT_SOURCE_DIR}/attention/kernels/cudnn/cudnn_rules.cpp)
  set_target_properties(cudnn_plans_test PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_link_libraries(cudnn_plans_test PRIVATE cinch_flags fmt::fmt nlohmann_json::nlohmann_json GTest::gtest GTest::gtest_main ${CMAKE_DL_LIBS})
  add_dependencies(cudnn_plans_test cinch_driver_stand_in cinch_cudnn)
endfunction()

if(CINCH_HAS_CUDA)
  cinch_find_cudnn(CINCH_HAS_CUDNN)
endif()
if(CINCH_HAS_CUDNN)
  cinch_cudnn_plugin()
endif()
