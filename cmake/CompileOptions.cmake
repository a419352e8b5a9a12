# kvtier_options: what every target of ours is compiled with. Generated code is not (it warns), and
# nvcc takes other options (cmake/Cuda.cmake).
add_library(kvtier_options INTERFACE)

function(_kvtier_cxx_options)
  target_compile_options(kvtier_options INTERFACE "$<$<COMPILE_LANGUAGE:C,CXX>:${ARGN}>")
endfunction()

_kvtier_cxx_options(
  -Wall -Wextra -Werror -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wcast-align
  -Wimplicit-fallthrough -Wextra-semi -Wvla -Wundef)

if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  # g++ cannot check the annotations of base/mutex.h; the clang presets do.
  _kvtier_cxx_options(-Wthread-safety -Wno-unknown-warning-option)
else()
  # g++ 12 reports these falsely inside inlined standard containers (GCC bugs 105329, 105562).
  _kvtier_cxx_options(-Wno-restrict -Wno-error=maybe-uninitialized
    -Wno-error=stringop-overflow -Wno-error=array-bounds -Wno-error=stringop-overread)
endif()

# Portable by default: any x86-64 since 2009 runs the binaries. Files that want more are compiled by
# kvtier_simd_source() and reached through run-time dispatch only.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  _kvtier_cxx_options(-march=x86-64-v2)
endif()

# Sanitizers cover our code and generated code alike, hence directory-wide.
if(KVTIER_SANITIZE)
  add_compile_options(-fsanitize=${KVTIER_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${KVTIER_SANITIZE})
  if(KVTIER_SANITIZE MATCHES "undefined")
    # Any finding ends the test. vptr is off because it needs the type information of every base
    # class, and packaged libraries may be built without it.
    add_compile_options(-fno-sanitize-recover=all -fno-sanitize=vptr)
    add_link_options(-fno-sanitize=vptr)
  endif()
  if(KVTIER_SANITIZE MATCHES "address")
    add_compile_definitions(_GLIBCXX_ASSERTIONS)
  endif()
endif()

if(KVTIER_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "KVTIER_FUZZ needs clang (preset fuzz)")
  endif()
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()
