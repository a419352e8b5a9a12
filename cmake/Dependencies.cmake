# Every third-party package, found once and here. Packages: scripts/install-deps.sh.
# Which folder may use which of them: scripts/check_layers.py.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)

# Protobuf in module mode must come before gRPC's config, which otherwise looks for a protobuf
# config package that Debian does not ship.
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_program(KVTIER_GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)

find_package(absl CONFIG REQUIRED)
find_package(OpenSSL 3.0 REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED COMPONENTS core pull)
find_package(zstd CONFIG REQUIRED)                 # zstd::libzstd_shared
find_package(RocksDB CONFIG REQUIRED)              # RocksDB::rocksdb-shared; ::rocksdb is static
find_package(dnnl CONFIG REQUIRED)                 # DNNL::dnnl; its config asks for OpenCL's loader
pkg_check_modules(isal REQUIRED IMPORTED_TARGET libisal)  # PkgConfig::isal
find_package(GTest CONFIG REQUIRED)
find_package(Python3 REQUIRED COMPONENTS Interpreter)      # lint tests only
