# cuda/: the only optional layer. KVTIER_CUDA is
#   AUTO  built when the CUDA toolkit (12.8 or newer, nvcc) and cuBLASLt are found and nvcc compiles
#         with our C++ compiler;
#   ON    the same, and refused by name when something is missing;
#   OFF   nothing of CUDA is looked for.
# What the device code does is tested without any of this: its sources are compiled as host code,
# too (cuda/simt.h), by tests/unit/cuda.
#
# Sets KVTIER_CUDA_FOUND (in this directory and below).
set(KVTIER_CUDA_FOUND FALSE)
set(KVTIER_CUDA_ARCHITECTURES "80-real;90a-real;90-virtual" CACHE STRING
  "GPU architectures that cuda/ is compiled for")
set(KVTIER_CUDNN_FRONTEND "${PROJECT_SOURCE_DIR}/build/deps/cudnn-frontend/include" CACHE PATH
  "Folder of cudnn_frontend.h; scripts/install-deps.sh --cuda puts it here")

function(_kvtier_find_cuda missing)
  set(${missing} "" PARENT_SCOPE)
  find_package(CUDAToolkit 12.8 QUIET)
  if(NOT CUDAToolkit_FOUND)
    set(${missing} "the CUDA toolkit, 12.8 or newer (set CUDAToolkit_ROOT)" PARENT_SCOPE)
    return()
  endif()
  if(NOT CUDAToolkit_NVCC_EXECUTABLE)
    set(${missing} "nvcc in ${CUDAToolkit_BIN_DIR}" PARENT_SCOPE)
    return()
  endif()
  if(NOT TARGET CUDA::cublasLt)
    set(${missing} "cuBLASLt in ${CUDAToolkit_LIBRARY_DIR}" PARENT_SCOPE)
    return()
  endif()
  set(nvcc "${CUDAToolkit_NVCC_EXECUTABLE}" PARENT_SCOPE)
  set(toolkit "${CUDAToolkit_VERSION}" PARENT_SCOPE)
  set(CUDAToolkit_INCLUDE_DIRS "${CUDAToolkit_INCLUDE_DIRS}" PARENT_SCOPE)
  set(CUDAToolkit_LIBRARY_DIR "${CUDAToolkit_LIBRARY_DIR}" PARENT_SCOPE)
endfunction()

# enable_language() stops configuring where the compiler does not work, mostly because nvcc refuses
# the host compiler. This says what is wrong instead; a machine that builds asks once.
function(_kvtier_check_nvcc nvcc missing)
  set(${missing} "" PARENT_SCOPE)
  if(DEFINED CMAKE_CUDA_COMPILER AND NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)  # What an earlier check left: things may have changed.
  endif()
  set(ENV{CUDACXX} "${nvcc}")
  set(ENV{CUDAHOSTCXX} "${CMAKE_CXX_COMPILER}")
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(${missing} "an nvcc that compiles: ${nvcc} does not with ${CMAKE_CXX_COMPILER} as its host \
compiler (CMakeFiles/CMakeError.log)" PARENT_SCOPE)
  endif()
endfunction()

# cuDNN and NCCL come without package files. Makes the imported target kvtier::<name> when both the
# header and the library are found.
function(_kvtier_find_shared name header library)
  find_path(KVTIER_${name}_INCLUDE ${header} HINTS ${CUDAToolkit_INCLUDE_DIRS})
  find_library(KVTIER_${name}_LIBRARY ${library} HINTS "${CUDAToolkit_LIBRARY_DIR}")
  mark_as_advanced(KVTIER_${name}_INCLUDE KVTIER_${name}_LIBRARY)
  if(KVTIER_${name}_INCLUDE AND KVTIER_${name}_LIBRARY AND NOT TARGET kvtier::${name})
    add_library(kvtier::${name} SHARED IMPORTED GLOBAL)
    set_target_properties(kvtier::${name} PROPERTIES
      IMPORTED_LOCATION "${KVTIER_${name}_LIBRARY}"
      INTERFACE_INCLUDE_DIRECTORIES "${KVTIER_${name}_INCLUDE}")
  endif()
endfunction()

if(NOT KVTIER_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "KVTIER_CUDA is '${KVTIER_CUDA}'; known: AUTO, ON, OFF")
endif()
if(NOT KVTIER_CUDA STREQUAL "OFF")
  set(nvcc "")
  _kvtier_find_cuda(missing)
  if(NOT missing AND CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    set(missing "g++ (nvcc's host compiler is the one that the rest is built with)")
  endif()
  if(NOT missing AND KVTIER_CUDA STREQUAL "AUTO")
    _kvtier_check_nvcc("${nvcc}" missing)
  endif()
  if(NOT missing)
    set(KVTIER_CUDA_FOUND TRUE)
  elseif(KVTIER_CUDA STREQUAL "ON")
    message(FATAL_ERROR "KVTIER_CUDA=ON, but this is missing: ${missing}")
  else()
    message(STATUS "kvtier: CUDA AUTO: off, without ${missing}")
  endif()
else()
  message(STATUS "kvtier: CUDA OFF")
endif()

if(KVTIER_CUDA_FOUND)
  # The C++ compiler is the host compiler, so that both sides see one standard library.
  set(CMAKE_CUDA_COMPILER "${nvcc}" CACHE FILEPATH "nvcc")
  set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}" CACHE FILEPATH "nvcc's host compiler")
  set(CMAKE_CUDA_ARCHITECTURES "${KVTIER_CUDA_ARCHITECTURES}")
  enable_language(CUDA)
  # CMake 3.25 does not know that nvcc can do C++20.
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  endif()
  _kvtier_find_shared(cudnn cudnn.h cudnn)
  _kvtier_find_shared(nccl nccl.h nccl)
  set(parts "cuBLASLt")
  set(KVTIER_CUDNN_ATTENTION FALSE)
  if(TARGET kvtier::cudnn AND EXISTS "${KVTIER_CUDNN_FRONTEND}/cudnn_frontend.h")
    set(KVTIER_CUDNN_ATTENTION TRUE)
    list(APPEND parts "cuDNN and its frontend")
  elseif(TARGET kvtier::cudnn)
    list(APPEND parts "cuDNN without its frontend's headers (scripts/install-deps.sh --cuda)")
  endif()
  if(TARGET kvtier::nccl)
    list(APPEND parts "NCCL")
  endif()
  list(JOIN parts ", " parts)
  message(STATUS "kvtier: CUDA ${KVTIER_CUDA}: toolkit ${toolkit}, ${KVTIER_CUDA_ARCHITECTURES}; found: ${parts}")
endif()

# kvtier_cuda_sources(<target> FILE...): device code. Warnings are errors, and scripts/nvcc_checked.py
# fails the build when a kernel spills registers or outgrows its row of cuda/kernel_limits.txt.
function(kvtier_cuda_sources target)
  target_sources(${target} PRIVATE ${ARGN})
  set(launcher "${Python3_EXECUTABLE}" "-B" "${PROJECT_SOURCE_DIR}/scripts/nvcc_checked.py"
    "${PROJECT_SOURCE_DIR}/cuda/kernel_limits.txt")
  if(KVTIER_CCACHE)
    list(APPEND launcher "${KVTIER_CCACHE}")
  endif()
  set_target_properties(${target} PROPERTIES CUDA_COMPILER_LAUNCHER "${launcher}")
  set_property(SOURCE ${ARGN} APPEND PROPERTY OBJECT_DEPENDS
    "${PROJECT_SOURCE_DIR}/cuda/kernel_limits.txt;${PROJECT_SOURCE_DIR}/scripts/nvcc_checked.py")
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:\
-Werror=all-warnings;--expt-relaxed-constexpr;-Xptxas=-v;-Xcompiler=-Wall,-Wextra,-Werror,-march=x86-64-v2>")
endfunction()

add_subdirectory(cuda)
