# Sources of the suites that backends pass, for the tests that make one: compiled into each, because
# a library's tests would be left out by the linker.
set(folder "${PROJECT_SOURCE_DIR}/tests/conformance")
# Every backend.
set(KVTIER_BACKEND_CONFORMANCE
  ${folder}/backend_conformance.cc
  ${folder}/backend_conformance_attention.cc
  ${folder}/backend_conformance_dense.cc
  ${folder}/backend_conformance_pack.cc
  ${folder}/backend_conformance_rows.cc
  ${folder}/backend_conformance_score.cc
  ${folder}/backend_conformance_scores.cc
  ${folder}/backend_tensors.cc
  ${folder}/backend_threads.cc)
# Those that compute on a device, in bf16 too, and rank there.
set(KVTIER_DEVICE_CONFORMANCE ${KVTIER_BACKEND_CONFORMANCE}
  ${folder}/bf16_conformance.cc
  ${folder}/bf16_dense_attention.cc
  ${folder}/device_ranking_conformance.cc)
# Decoding on a device, of a tiny model (kvtier_tiny_model).
set(KVTIER_DECODER_CONFORMANCE
  ${folder}/decode_step_conformance.cc
  ${folder}/decoder_conformance.cc
  ${PROJECT_SOURCE_DIR}/tests/unit/compressor/compress_testing.cc)
