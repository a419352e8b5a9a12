# cuda/ is the only optional layer. It has no sources yet, so AUTO and OFF build without it and ON,
# which asks for it explicitly, is refused instead of being ignored.
if(EXISTS "${PROJECT_SOURCE_DIR}/cuda/CMakeLists.txt" AND NOT KVTIER_CUDA STREQUAL "OFF")
  add_subdirectory(cuda)
elseif(KVTIER_CUDA STREQUAL "ON")
  message(FATAL_ERROR "KVTIER_CUDA=ON, but this version has no CUDA sources yet (see cuda/README.md)")
else()
  message(STATUS "kvtier: CUDA ${KVTIER_CUDA}: this version has no CUDA sources yet, CPU only")
endif()
