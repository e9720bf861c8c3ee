/// A device on its own image, with a driver in the same process.
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

struct RigOptions: Sendable {
  var engine = EngineKind.auto
  /// `nil`: a folder on a disk.
  var folder: String?
  var size = 4 << 20
  var direct = ImageOptions.Direct.off
  var blockSize = 512
  var isReadOnly = false
  var device = BlockDeviceOptions()
  var features = BlockFeature.understood
  /// Used instead of a file.
  var nbd: NBDOptions?
  var rbd: RBDOptions?
  var qcow2: Qcow2Location?
  var zoned: ZonedOptions?
  /// Used instead of the engine.
  var script: Script?
}

final class Rig {
  let scratch: Scratch
  let path: String
  let device: BlockDevice
  let transport: InProcessTransport
  let client: BlockClient

  init(_ options: RigOptions = RigOptions(), image: String? = nil, isLocked: Bool = true) throws {
    scratch = try Scratch(in: options.folder)
    path =
      try options.nbd?.location.text ?? options.rbd?.location.text ?? options.qcow2?.path ?? image
      ?? scratch.image(size: options.size)
    var imageOptions = ImageOptions(
      path: path, isReadOnly: options.isReadOnly, direct: options.direct, logicalBlockSize: options.blockSize,
      isLocked: isLocked)
    imageOptions.nbd = options.nbd
    imageOptions.rbd = options.rbd
    imageOptions.qcow2 = options.qcow2
    imageOptions.zoned = options.zoned
    let file = try ImageFile(imageOptions)
    var deviceOptions = options.device
    deviceOptions.engine = options.script == nil ? options.engine : .sync
    if let script = options.script {
      device = try BlockDevice(image: file, options: deviceOptions) { script.serve($0, $1) }
    } else {
      device = try BlockDevice(image: file, options: deviceOptions)
    }
    transport = try InProcessTransport(device: device, memory: DriverMemory(size: 8 << 20))
    client = try BlockClient(transport, options: DriverOptions(features: options.features))
  }

  deinit { try? client.shutDown() }

  func perform(_ request: BlockRequest, framing: Framing? = nil, queue: Int = 0) throws -> BlockOutcome {
    try client.queues[queue].perform(request, framing: framing)
  }

  /// Performs a request, and expects this status and a used length that counts only written bytes.
  @discardableResult
  func expect(
    _ request: BlockRequest, _ status: BlockStatusCode = .ok, framing: Framing? = nil, _ note: String = "",
    _ place: SourceLocation = #_sourceLocation
  ) throws -> BlockOutcome {
    let outcome = try perform(request, framing: framing)
    #expect(outcome.status == status, "\(request) \(note)", sourceLocation: place)
    #expect(outcome.unwrittenByte == nil, "\(request) \(note)", sourceLocation: place)
    if status == .ok { #expect(outcome.length == UInt32(request.answerBytes + 1), "\(request) \(note)", sourceLocation: place) }
    return outcome
  }

  func contents(at offset: Int, count: Int) throws -> [UInt8] { try scratch.contents(path, at: offset, count: count) }
}

/// Bytes that tell where they belong: a repeated tile whose length is not a multiple of any block.
func pattern(_ count: Int, seed: Int = 1) -> [UInt8] {
  let tile = (0..<min(count, 4093)).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8 &+ seed &* 31 &+ 1) }
  var bytes: [UInt8] = []
  bytes.reserveCapacity(count + tile.count)
  while bytes.count < count { bytes += tile }
  return Array(bytes.prefix(count))
}

/// Where two byte arrays first differ, `nil` if they are equal: an expectation that compares long arrays itself takes minutes
/// to describe the difference.
func firstDifference(_ one: [UInt8], _ other: [UInt8]) -> Int? {
  guard one != other else { return nil }
  return zip(one, other).enumerated().first { $1.0 != $1.1 }?.offset ?? min(one.count, other.count)
}

func zeroes(_ count: Int) -> [UInt8] { [UInt8](repeating: 0, count: count) }
