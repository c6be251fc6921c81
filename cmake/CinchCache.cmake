# The cache folder (the same rule as scripts/common.sh), and ccache in front of the compilers, so that a second clone compiles almost nothing.
if(NOT CINCH_CACHE)
  if(DEFINED ENV{CINCH_CACHE})
    set(CINCH_CACHE $ENV{CINCH_CACHE})
  elseif(DEFINED ENV{XDG_CACHE_HOME})
    set(CINCH_CACHE $ENV{XDG_CACHE_HOME}/cinch)
  else()
    set(CINCH_CACHE $ENV{HOME}/.cache/cinch)
  endif()
endif()

find_program(CINCH_CCACHE ccache)
if(CINCH_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # base_dir and nohashdir: clones at other paths share objects. sloppiness: what ccache asks for with precompiled headers.
  set(launcher ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1
    CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime)
  if(NOT DEFINED ENV{CCACHE_DIR})
    list(APPEND launcher CCACHE_DIR=${CINCH_CACHE}/ccache CCACHE_MAXSIZE=10G)
  endif()
  set(CMAKE_C_COMPILER_LAUNCHER ${launcher} ${CINCH_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher} ${CINCH_CCACHE})
endif()
