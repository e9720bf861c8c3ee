/// The memory accesses as compiled for Arm, whose CPUs order loads and stores much less than x86-64 does. The tests run without
/// such a machine: they compile for it and check the instructions.
import Foundation
import Testing

@Suite struct ArmOrderTests {
  private static let target = "aarch64-none-none-elf"

  /// Functions whose machine code shows one access each.
  private static let uses = """
    @_cdecl("copy_then_count") public func copyThenCount(
      _ guest: UnsafeMutableRawPointer, _ counter: UnsafeMutableRawPointer, _ copy: UnsafeMutablePointer<UInt64>
    ) -> UInt64 {
      let word = unsafe guest.load(as: UInt64.self)
      unsafe copy.pointee = word
      return unsafe SharedCell<UInt64>(counter).loadAfterLoads()
    }
    @_cdecl("store_release") public func storeRelease(_ p: UnsafeMutableRawPointer, _ v: UInt16) {
      unsafe SharedCell<UInt16>(p).storeRelease(v)
    }
    @_cdecl("load_acquire") public func loadAcquire(_ p: UnsafeMutableRawPointer) -> UInt16 {
      unsafe SharedCell<UInt16>(p).loadAcquire()
    }
    @_cdecl("load_relaxed") public func loadRelaxed(_ p: UnsafeMutableRawPointer) -> UInt16 {
      unsafe SharedCell<UInt16>(p).loadRelaxed()
    }
    @_cdecl("full_fence") public func bothWays() { fullFence() }
    """

  /// The instructions of each function, by its name; `nil` if this compiler has no library for Arm.
  private static let code: [String: [String]]? = {
    let folder = NSTemporaryDirectory() + "vmm-blk-arm-" + UUID().uuidString.prefix(8)
    try? FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: false)
    defer { try? FileManager.default.removeItem(atPath: folder) }
    let cell = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent().appendingPathComponent("Sources/VirtioCore/Memory/SharedCell.swift").path
    try? uses.write(toFile: folder + "/uses.swift", atomically: false, encoding: .utf8)
    let compiler = Process()
    compiler.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    compiler.arguments = [
      "swiftc", "-O", "-wmo", "-parse-as-library", "-enable-experimental-feature", "Embedded", "-target", target, "-S", cell,
      folder + "/uses.swift", "-module-cache-path", folder, "-o", folder + "/code.s",
    ]
    compiler.standardError = FileHandle.nullDevice
    guard (try? compiler.run()) != nil else { return nil }
    compiler.waitUntilExit()
    guard compiler.terminationStatus == 0, let text = try? String(contentsOfFile: folder + "/code.s", encoding: .utf8) else {
      return nil
    }
    var code: [String: [String]] = [:]
    var name = ""
    for line in text.split(separator: "\n") {
      let words = line.split(whereSeparator: { $0 == "\t" || $0 == " " })
      guard let first = words.first else { continue }
      if first.hasSuffix(":") {
        if !first.hasPrefix(".") { name = String(first.dropLast()) }
      } else if line.hasPrefix("\t"), !first.hasPrefix("."), !first.hasPrefix("//") {
        code[name, default: []].append(words.prefix { !$0.hasPrefix("//") }.joined(separator: " "))
      }
    }
    return code
  }()

  /// A copy counts as valid only if no fault was counted: the count is loaded after everything that the copy loaded.
  @Test func theFaultCountIsLoadedAfterTheCopy() throws {
    guard let code = Self.code else { return }
    let steps = try #require(code["copy_then_count"])
    let copy = try #require(steps.firstIndex { $0.hasPrefix("ldr") && $0.contains("[x0]") })
    let fence = try #require(steps.firstIndex { $0 == "dmb ishld" || $0 == "dmb ish" })
    let count = try #require(steps.firstIndex { $0.hasPrefix("ldr") && $0.contains("[x1]") })
    #expect(copy < fence && fence < count, "\(steps)")
  }

  @Test(arguments: [
    ("store_release", "stlrh"), ("load_acquire", "ldarh"), ("load_relaxed", "ldrh"), ("full_fence", "dmb ish"),
  ])
  func eachAccessIsAsStrongAsItsName(function: String, instruction: String) throws {
    guard let code = Self.code else { return }
    let steps = try #require(code[function])
    #expect(steps.contains { $0 == instruction || $0.hasPrefix(instruction + " ") || $0.hasPrefix("ldaprh") }, "\(steps)")
  }
}
