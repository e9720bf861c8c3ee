// swift-tools-version: 6.2
import PackageDescription

/// Every target of this package is built with the strictest checks that the compiler has.
let strict: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .strictMemorySafety(),
  .treatAllWarnings(as: .error),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("InternalImportsByDefault"),
  .enableUpcomingFeature("MemberImportVisibility"),
]

let system = Target.Dependency.product(name: "SystemPackage", package: "swift-system")
let logging = Target.Dependency.product(name: "Logging", package: "swift-log")

/// The commit that is built, for --version; the Makefile sets it, and without that there is none. The package manager knows
/// it, too, but caches what it read here until this file changes, across commits and clones.
let commit = Context.environment["VMM_BLK_COMMIT"] ?? ""
let commitDefine: [CSetting] = commit.isEmpty ? [] : [.define("VMM_BLK_COMMIT", to: "\"\(commit)\"")]

let package = Package(
  name: "vmm-blk",
  products: [
    .executable(name: "vmm-blk", targets: ["vmm-blk"]),
    .library(name: "VirtioCore", targets: ["VirtioCore"]),
    .library(name: "VirtioBlkDevice", targets: ["VirtioBlkDevice"]),
    .library(name: "VirtioBlkMetrics", targets: ["VirtioBlkMetrics"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", .upToNextMinor(from: "1.8.2")),
    .package(url: "https://github.com/apple/swift-collections", .upToNextMinor(from: "1.6.0")),
    .package(url: "https://github.com/apple/swift-log", .upToNextMinor(from: "1.16.2")),
    .package(url: "https://github.com/apple/swift-metrics", .upToNextMinor(from: "2.13.0")),
    .package(url: "https://github.com/apple/swift-system", .upToNextMinor(from: "1.8.1")),
    .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift", .upToNextMinor(from: "0.2.0")),
    .package(url: "https://github.com/ordo-one/TextTable", .upToNextMinor(from: "0.0.2")),
  ],
  targets: [
    .systemLibrary(
      name: "CLinux", path: "Sources/CLinux", providers: [.apt(["liburing-dev", "libaio-dev", "libseccomp-dev"])]),
    .target(name: "CVersion", cSettings: commitDefine),
    .target(name: "VirtioCore", dependencies: ["CLinux", system], swiftSettings: strict),
    .target(name: "Qcow2", dependencies: ["CLinux", "VirtioCore", system], swiftSettings: strict),
    .target(name: "VirtioBlkDevice", dependencies: ["CLinux", "VirtioCore", "Qcow2", system], swiftSettings: strict),
    .target(
      name: "VirtioBlkMetrics",
      dependencies: ["VirtioBlkDevice", .product(name: "CoreMetrics", package: "swift-metrics")], swiftSettings: strict),
    .target(name: "VirtioRegisters", dependencies: ["VirtioCore"], swiftSettings: strict),
    .target(
      name: "Sockets",
      dependencies: ["CLinux", "VirtioCore", system, .product(name: "HeapModule", package: "swift-collections")],
      swiftSettings: strict),
    .target(name: "Sandbox", dependencies: ["CLinux", "VirtioCore", system], swiftSettings: strict),
    .target(name: "Control", dependencies: ["CLinux", "VirtioCore", "Sockets", system], swiftSettings: strict),
    .target(name: "MetricsExport", dependencies: ["CLinux", "VirtioCore", "Sockets", system], swiftSettings: strict),
    .target(name: "VhostUser", dependencies: ["CLinux", "VirtioCore", "Sockets", system], swiftSettings: strict),
    .target(
      name: "MemoryFile", dependencies: ["CLinux", "VirtioCore", "VirtioRegisters", "Sockets", system],
      swiftSettings: strict),
    .target(
      name: "RingInspector", dependencies: ["VirtioCore", "VirtioRegisters", "MemoryFile"], swiftSettings: strict),
    .target(
      name: "GuestDriver",
      dependencies: ["CLinux", "VirtioCore", "VirtioRegisters", "Sockets", "VhostUser", "MemoryFile", system],
      swiftSettings: strict),
    .target(
      name: "Bench",
      dependencies: [
        "CLinux", "CVersion", "VirtioCore", "VirtioBlkDevice", "VhostUser", "MemoryFile", "GuestDriver", system,
        .product(name: "Histogram", package: "hdrhistogram-swift"),
        .product(name: "TextTable", package: "TextTable"),
      ],
      swiftSettings: strict),
    .target(
      name: "CrashCheck", dependencies: ["CLinux", "VirtioCore", "VirtioBlkDevice", "GuestDriver", system],
      swiftSettings: strict),
    .target(
      name: "OperatorWords",
      dependencies: [
        "CLinux", "VirtioCore", "VirtioBlkDevice", "MetricsExport", "VhostUser", "GuestDriver", system,
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      swiftSettings: strict),
    .target(name: "TraceReport", dependencies: ["VirtioBlkDevice", "VirtioCore"], swiftSettings: strict),
    .target(
      name: "Conform",
      dependencies: [
        "CLinux", "VirtioCore", "VirtioBlkDevice", "VirtioRegisters", "Sockets", "VhostUser", "MemoryFile", "GuestDriver",
        system,
      ],
      swiftSettings: strict),
    .target(
      name: "DriverCheck",
      dependencies: ["CLinux", "VirtioCore", "VirtioRegisters", "Conform", system], swiftSettings: strict),
    .executableTarget(
      name: "vmm-blk",
      dependencies: [
        "CLinux", "CVersion", "VirtioCore", "VirtioBlkDevice", "VirtioRegisters", "Sockets", "Sandbox", "Control",
        "MetricsExport",
        "VhostUser", "MemoryFile", "RingInspector", "GuestDriver", "Bench", "CrashCheck", "Conform", "DriverCheck",
        "OperatorWords", "TraceReport", "Qcow2", system, logging,
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "Histogram", package: "hdrhistogram-swift"),
        .product(name: "TextTable", package: "TextTable"),
      ],
      swiftSettings: strict),
    // A toy monitor around the libraries: an example, and for the tests.
    .executableTarget(
      name: "toy-monitor", dependencies: ["VirtioCore", "VirtioBlkDevice", system], path: "Examples/ToyMonitor",
      swiftSettings: strict),
    .target(
      name: "HandDriver", dependencies: ["CLinux", "VirtioCore", "VirtioBlkDevice", system],
      path: "Benchmarks/HandDriver", swiftSettings: strict),
    .executableTarget(
      name: "request-cost", dependencies: ["CLinux", "VirtioCore", "VirtioBlkDevice", "HandDriver", system],
      path: "Benchmarks/RequestCost", swiftSettings: strict),
    .executableTarget(
      name: "open-load", dependencies: ["CLinux", "VirtioCore"], path: "Benchmarks/OpenLoad", swiftSettings: strict),
    .executableTarget(
      name: "ring-cost",
      dependencies: [
        "CLinux", "VirtioCore", "VirtioBlkDevice", "HandDriver", system,
        .product(name: "Histogram", package: "hdrhistogram-swift"),
        .product(name: "TextTable", package: "TextTable"),
      ],
      path: "Benchmarks/RingCost", swiftSettings: strict),
    // The device end of QEMU's proxy for PCI functions: a program for Scripts/guest, not for users.
    .executableTarget(
      name: "pci-proxy",
      dependencies: ["CLinux", "VirtioCore", "VirtioBlkDevice", "VirtioRegisters", "DriverCheck", "OperatorWords"],
      path: "Tests/PCIProxy", swiftSettings: strict),
    .testTarget(
      name: "VirtioCoreTests", dependencies: ["CLinux", "VirtioCore", "GuestDriver", system], swiftSettings: strict),
    .testTarget(
      name: "BlkDeviceTests",
      dependencies: ["CLinux", "VirtioCore", "VirtioBlkDevice", "Qcow2", "GuestDriver", "TestSupport", system],
      swiftSettings: strict),
    .testTarget(
      name: "Qcow2Tests", dependencies: ["CLinux", "VirtioCore", "Qcow2", "TestSupport", system], swiftSettings: strict),
    .testTarget(name: "RegistersTests", dependencies: ["VirtioCore", "VirtioRegisters"], swiftSettings: strict),
    .target(
      name: "TestSupport", dependencies: ["CLinux", "VirtioCore", "Sockets", "GuestDriver"], path: "Tests/Support",
      swiftSettings: strict),
    .executableTarget(
      name: "sandbox-probe", dependencies: ["CLinux", "VirtioCore", "Sandbox"], path: "Tests/SandboxProbe",
      swiftSettings: strict),
    .testTarget(
      name: "SandboxTests", dependencies: ["CLinux", "VirtioCore", "Sandbox", "TestSupport", "sandbox-probe"],
      swiftSettings: strict),
    .testTarget(
      name: "OperatorWordsTests",
      dependencies: [
        "VirtioBlkDevice", "MetricsExport", "OperatorWords",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      swiftSettings: strict),
    .testTarget(
      name: "TraceTests",
      dependencies: [
        "CLinux", "VirtioCore", "VirtioBlkDevice", "GuestDriver", "VhostUser", "TraceReport", "TestSupport", system,
      ],
      swiftSettings: strict),
    .testTarget(
      name: "ControlTests", dependencies: ["CLinux", "VirtioCore", "Sockets", "Control", "TestSupport", system],
      swiftSettings: strict),
    .testTarget(
      name: "MetricsTests",
      dependencies: [
        "CLinux", "VirtioCore", "Sockets", "MetricsExport", "VirtioBlkDevice", "VirtioBlkMetrics", system,
        .product(name: "MetricsTestKit", package: "swift-metrics"),
      ],
      swiftSettings: strict),
    .testTarget(
      name: "VhostUserTests",
      dependencies: ["CLinux", "VirtioCore", "Sockets", "VhostUser", "GuestDriver", "TestSupport", system],
      exclude: ["Golden"], swiftSettings: strict),
    .testTarget(
      name: "MemoryFileTests",
      dependencies: [
        "CLinux", "VirtioCore", "VirtioBlkDevice", "VirtioRegisters", "Sockets", "MemoryFile", "RingInspector", "GuestDriver",
        "TestSupport", system,
      ],
      swiftSettings: strict),
    .testTarget(
      name: "GuestDriverTests",
      dependencies: [
        "CLinux", "VirtioCore", "VirtioBlkDevice", "VirtioRegisters", "Sockets", "VhostUser", "MemoryFile", "GuestDriver",
        system,
      ],
      swiftSettings: strict),
    .testTarget(
      name: "CrashCheckTests",
      dependencies: ["CLinux", "VirtioCore", "VirtioBlkDevice", "GuestDriver", "CrashCheck", system], swiftSettings: strict),
    .testTarget(
      name: "ConformTests",
      dependencies: [
        "CLinux", "VirtioCore", "VirtioRegisters", "VhostUser", "MemoryFile", "GuestDriver", "Conform", "TestSupport", system,
      ],
      swiftSettings: strict),
    .testTarget(
      name: "DriverCheckTests",
      dependencies: ["VirtioCore", "VirtioRegisters", "GuestDriver", "Conform", "DriverCheck", "TestSupport", system],
      swiftSettings: strict),
    .testTarget(
      name: "BenchTests",
      dependencies: [
        "CLinux", "VirtioCore", "VirtioBlkDevice", "GuestDriver", "Bench", system,
        .product(name: "Histogram", package: "hdrhistogram-swift"),
      ],
      swiftSettings: strict),
  ]
)

// The fuzz targets (Scripts/fuzz.py): one program, only on request, so that nothing else builds it.
if Context.environment["VMM_BLK_FUZZ"] != nil {
  package.targets.append(
    .executableTarget(
      name: "fuzz",
      dependencies: [
        "CLinux", "VirtioCore", "VirtioBlkDevice", "VirtioRegisters", "Sockets", "Control", "MetricsExport", "VhostUser",
        "MemoryFile", "RingInspector", "Bench", "CrashCheck", "OperatorWords", "Qcow2", system,
      ],
      path: "Fuzz", exclude: ["Corpus"],
      // Not strict about memory: finding memory errors, with a sanitizer, is its purpose.
      swiftSettings: [.swiftLanguageMode(.v6), .treatAllWarnings(as: .error), .enableUpcomingFeature("ExistentialAny")]))
}
