/// Shared by the benchmark's tests: their own images, and short runs.
import CLinux
import Foundation
import Testing
import VirtioBlkDevice

@testable import Bench

/// A test's own folder, removed when the test is over.
final class Scratch {
  let path: String

  init() throws {
    path = NSTemporaryDirectory() + "/vmm-blk-bench-test-" + UUID().uuidString
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }

  func imagePath(size: Int = 1 << 20) throws -> String {
    let file = path + "/disk"
    if !FileManager.default.fileExists(atPath: file) {
      #expect(FileManager.default.createFile(atPath: file, contents: nil))
      try #require(unsafe truncate(file, off_t(size)) == 0)
    }
    return file
  }

  func image(readOnly: Bool = false) throws -> ImageFile {
    try ImageFile(ImageOptions(path: try imagePath(), isReadOnly: readOnly, direct: .off, isLocked: false))
  }

  func device(queues: Int = 1, engine: EngineKind = .sync) throws -> BlockDevice {
    var options = BlockDeviceOptions()
    options.queueCount = queues
    options.engine = engine
    return try BlockDevice(image: try image(), options: options)
  }
}

extension BenchmarkOptions {
  /// The shortest run that still measures something.
  static func short(_ target: TargetChoice, _ change: (inout Workload) -> Void = { _ in }) -> BenchmarkOptions {
    var options = BenchmarkOptions(target: target)
    options.run.runtime = 0.02
    options.run.rampTime = 0.01
    // So that the result does not depend on how busy the machine is.
    options.run.leastRequests = 500
    options.ceilingSeconds = 0
    change(&options.workload)
    return options
  }
}

/// All paths through a JSON document, as `jq 'paths'` names them.
func jsonPaths(_ value: Any) -> Set<String> {
  var found: Set<String> = []
  func walk(_ value: Any, _ path: String) {
    if !path.isEmpty { found.insert(path) }
    let prefix = path.isEmpty ? "" : path + "/"
    if let object = value as? [String: Any] {
      for (key, value) in object { walk(value, prefix + key) }
    } else if let array = value as? [Any] {
      for (index, value) in array.enumerated() { walk(value, prefix + "\(index)") }
    }
  }
  walk(value, "")
  return found
}
