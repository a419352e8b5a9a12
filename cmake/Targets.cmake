# The functions with which folders declare what they build. Include paths start at the repository
# root everywhere: #include "kvcache/key.h".
#
#   kvtier_library(<name> SOURCES ... [DEPS ...] [PRIVATE_DEPS ...])
#   kvtier_binary(<name> SOURCES ... [DEPS ...])
#   kvtier_test(<name> SOURCES ... LABELS ... [DEPS ...] [USES_BINARIES ...] [TIMEOUT s]
#               [PROCESSORS n] [ENVIRONMENT A=b ...])
#   kvtier_fuzz_target(<name> SOURCES ... [DEPS ...] [CORPUS dir])
#   kvtier_proto_library(<name> PROTOS ... [DEPS ...])
#   kvtier_simd_source(<target> <file> <flags>...)

set(KVTIER_BIN_DIR "${PROJECT_BINARY_DIR}/bin")
set(KVTIER_TEST_DIR "${PROJECT_BINARY_DIR}/test_bin")
set(KVTIER_TEST_LABELS unit conformance fault integration gpu fuzz slow)

# Aggregates for the sanitizer stages of .ci/run, so that they build nothing they do not run.
add_custom_target(kvtier_sanitizer_tests)       # labels unit, conformance, fault, fuzz
add_custom_target(kvtier_below_services_tests)  # label below_services
add_custom_target(kvtier_fuzz_targets)          # label fuzz

function(kvtier_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;DEPS;PRIVATE_DEPS")
  _kvtier_check_arguments(${name})
  add_library(${name} STATIC ${arg_SOURCES})
  target_include_directories(${name} PUBLIC "${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PUBLIC ${arg_DEPS} PRIVATE kvtier_options ${arg_PRIVATE_DEPS})
  if(name STREQUAL "kvtier_base" AND KVTIER_SYNC_POINTS)
    # Public: the macro expands in whatever includes base/sync_point.h.
    target_compile_definitions(${name} PUBLIC KVTIER_SYNC_POINTS=1)
  endif()
endfunction()

function(kvtier_binary name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;DEPS")
  _kvtier_check_arguments(${name})
  add_executable(${name} ${arg_SOURCES})
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE kvtier_options ${arg_DEPS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${KVTIER_BIN_DIR}")
  set_property(GLOBAL APPEND PROPERTY KVTIER_PROGRAMS ${name})  # for scripts/check_docs.py
endfunction()

# One GoogleTest binary; every TEST becomes a ctest with the given LABELS.
# USES_BINARIES names product binaries that the test starts from KVTIER_BIN_DIR.
# A test is `below_services` unless it starts binaries, links kvtier_services or kvtier_proto, or
# lies in a folder called services or integration; SINGLE_THREADED ones, which tsan has nothing to
# say about, are not `below_services` either. TIMEOUT (60 s) is per TEST and is multiplied
# under sanitizers.
function(kvtier_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "SINGLE_THREADED" "TIMEOUT;PROCESSORS"
    "SOURCES;DEPS;LABELS;USES_BINARIES;ENVIRONMENT")
  _kvtier_check_arguments(${name})
  add_executable(${name} ${arg_SOURCES})
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE
    kvtier_options ${arg_DEPS} kvtier_testing GTest::gmock_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${KVTIER_TEST_DIR}")
  if(arg_USES_BINARIES)
    add_dependencies(${name} ${arg_USES_BINARIES})
  endif()

  # PRE_TEST: tests are listed when ctest runs, so a build does not start half-sanitized binaries.
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  _kvtier_test_labels(${name} labels)
  _kvtier_test_properties(properties)
  # gtest_discover_tests flattens lists, so two labels cannot go through its PROPERTIES. The list of
  # tests it leaves behind can be used in a file that ctest reads after it.
  set(file "${CMAKE_CURRENT_BINARY_DIR}/${name}_properties.cmake")
  file(WRITE "${file}" "\
if(NOT ${name}_TESTS)
  set(${name}_TESTS ${name}_NOT_BUILT)
endif()
set_tests_properties(\${${name}_TESTS} PROPERTIES LABELS \"${labels}\" ${properties})
")
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES "${file}")
endfunction()

# <name>.cc defines LLVMFuzzerTestOneInput. Under preset fuzz this is a libFuzzer binary in
# build/fuzz/bin; elsewhere it is a test that replays the CORPUS folder (corpus/<name> by default)
# and a fixed number of seeded mutations of each file.
function(kvtier_fuzz_target name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "CORPUS" "SOURCES;DEPS")
  _kvtier_check_arguments(${name})
  if(NOT arg_CORPUS)
    set(arg_CORPUS "corpus/${name}")
  endif()
  cmake_path(ABSOLUTE_PATH arg_CORPUS BASE_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}")
  add_executable(${name} ${arg_SOURCES})
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE kvtier_options ${arg_DEPS})
  set_property(GLOBAL APPEND PROPERTY KVTIER_PROGRAMS ${name})
  if(KVTIER_FUZZ)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${KVTIER_BIN_DIR}")
    # -runs=0 executes the corpus once; scripts/fuzz.sh runs a fuzzing session.
    add_test(NAME ${name} COMMAND ${name} -runs=0 "${arg_CORPUS}")
  else()
    target_sources(${name} PRIVATE "${PROJECT_SOURCE_DIR}/tests/fuzz/corpus_main.cc")
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${KVTIER_TEST_DIR}")
    add_test(NAME ${name} COMMAND ${name} "${arg_CORPUS}")
  endif()
  set(arg_LABELS fuzz)
  _kvtier_test_labels(${name} labels)
  _kvtier_test_properties(properties)
  cmake_language(EVAL CODE "set_tests_properties(${name} PROPERTIES LABELS \"${labels}\" ${properties})")
endfunction()

# C++ and gRPC code for files named relative to proto/, e.g. kvtier/v1/store.proto. The headers are
# included by the same name: #include "kvtier/v1/store.grpc.pb.h".
function(kvtier_proto_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "PROTOS;DEPS")
  set(arg_SOURCES ${arg_PROTOS})
  _kvtier_check_arguments(${name})
  set(root "${PROJECT_SOURCE_DIR}/proto")
  set(out "${PROJECT_BINARY_DIR}/generated/proto")
  file(MAKE_DIRECTORY "${out}")
  set(generated)
  foreach(proto IN LISTS arg_PROTOS)
    cmake_path(REMOVE_EXTENSION proto OUTPUT_VARIABLE stem)
    set(files "${out}/${stem}.pb.cc" "${out}/${stem}.pb.h"
      "${out}/${stem}.grpc.pb.cc" "${out}/${stem}.grpc.pb.h")
    list(TRANSFORM arg_PROTOS PREPEND "${root}/" OUTPUT_VARIABLE all_protos)
    add_custom_command(OUTPUT ${files}
      COMMAND protobuf::protoc "--proto_path=${root}" "--cpp_out=${out}" "--grpc_out=${out}"
        "--plugin=protoc-gen-grpc=${KVTIER_GRPC_CPP_PLUGIN}" "${root}/${proto}"
      DEPENDS ${all_protos}  # they import each other
      COMMENT "Generating ${proto}" VERBATIM)
    list(APPEND generated ${files})
  endforeach()
  add_library(${name} STATIC ${generated})
  target_compile_options(${name} PRIVATE -w)  # not our code
  target_include_directories(${name} SYSTEM PUBLIC "${out}")
  target_link_libraries(${name} PUBLIC gRPC::grpc++ protobuf::libprotobuf ${arg_DEPS})
endfunction()

# Compiles one file of a target for a newer CPU. The file must be reached through run-time dispatch
# only, and must include no header with inline functions that other files use: the linker keeps one
# copy of an inline function, and it could be the one that old CPUs cannot run.
function(kvtier_simd_source target file)
  set_property(SOURCE "${file}" TARGET_DIRECTORY ${target} APPEND PROPERTY COMPILE_OPTIONS ${ARGN})
endfunction()

# --- internal ---------------------------------------------------------------------------------

macro(_kvtier_check_arguments name)
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "${name}: unknown arguments: ${arg_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT arg_SOURCES)
    message(FATAL_ERROR "${name}: no sources")
  endif()
endmacro()

# Reads arg_LABELS, arg_DEPS, arg_USES_BINARIES, arg_SINGLE_THREADED of the caller; adds the target to the aggregates.
function(_kvtier_test_labels name out)
  set(labels ${arg_LABELS})
  if(NOT labels)
    message(FATAL_ERROR "${name}: LABELS is missing")
  endif()
  foreach(label IN LISTS labels)
    if(NOT label IN_LIST KVTIER_TEST_LABELS)
      message(FATAL_ERROR "${name}: unknown label ${label} (known: ${KVTIER_TEST_LABELS})")
    endif()
  endforeach()
  file(RELATIVE_PATH folder "${PROJECT_SOURCE_DIR}" "${CMAKE_CURRENT_SOURCE_DIR}")
  if(NOT arg_SINGLE_THREADED AND NOT arg_USES_BINARIES AND NOT folder MATCHES "(^|/)(services|integration)(/|$)"
     AND NOT arg_DEPS MATCHES "kvtier_(services|proto)")
    list(APPEND labels below_services)
    add_dependencies(kvtier_below_services_tests ${name})
  endif()
  if(labels MATCHES "unit|conformance|fault|fuzz")
    add_dependencies(kvtier_sanitizer_tests ${name})
  endif()
  if(labels MATCHES "fuzz")
    add_dependencies(kvtier_fuzz_targets ${name})
  endif()
  set(${out} "${labels}" PARENT_SCOPE)
endfunction()

# Reads arg_TIMEOUT, arg_PROCESSORS, arg_ENVIRONMENT of the caller.
function(_kvtier_test_properties out)
  set(timeout 60)
  if(arg_TIMEOUT)
    set(timeout ${arg_TIMEOUT})
  endif()
  if(KVTIER_SANITIZE)
    math(EXPR timeout "${timeout} * 5")
  endif()
  set(processors 1)
  if(arg_PROCESSORS)
    set(processors ${arg_PROCESSORS})
  endif()
  set(suppressions "${PROJECT_SOURCE_DIR}/tests/tsan_suppressions.txt")
  set(environment ${arg_ENVIRONMENT}
    "ASAN_OPTIONS=strict_string_checks=1:detect_stack_use_after_return=1:check_initialization_order=1"
    "UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1"
    "TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:suppressions=${suppressions}")
  set(${out} "TIMEOUT ${timeout} PROCESSORS ${processors} ENVIRONMENT \"${environment}\"" PARENT_SCOPE)
endfunction()

include(GoogleTest)
