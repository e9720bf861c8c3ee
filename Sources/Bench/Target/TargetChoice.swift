/// The ways to reach a disk.
internal import CLinux
public import GuestDriver
internal import MemoryFile
internal import VhostUser
public import VirtioBlkDevice
internal import VirtioCore

/// What to measure.
public enum TargetChoice: Sendable {
  /// Any vhost-user back-end that listens on this path.
  case socket(path: String)
  /// A device on a memory file.
  case memoryFile(path: String)
  /// A device in this process.
  case device(BlockDevice, name: String)
  /// Only the client itself, against an echo.
  case echo
}

/// How to drive it.
public struct TargetOptions: Sendable {
  /// Entries of each ring; `nil`: as many as the depth needs, at least 128.
  public var ringSize: Int?
  /// Pieces that guest memory is cut into, 1 … 509; a memory file has its own.
  public var memoryRegions = 1
  /// Use these features if the device offers them.
  public var usesIndirect = true
  public var usesEventIndex = true
  /// The format of the rings; a device without packed rings cannot be measured with them.
  public var ring = RingFormat.split
  /// Keep the back-end's in-flight records for it, as virtual machine monitors do; for a socket.
  public var keepsRecords = false
  /// Let the back-end log all pages that it writes to, as during a live migration; for a socket.
  public var logsWrites = false
  /// The process to watch; `nil`: the one that listens on the socket or has the file open.
  public var backendProcess: Int32?

  public init() {}

  var avoided: FeatureSet {
    var features: FeatureSet = []
    if !usesIndirect { features.insert(.indirectDescriptors) }
    if !usesEventIndex { features.insert(.eventIndex) }
    return features
  }
}

extension Target {
  /// Connects and negotiates. - Precondition: not `.echo`, which is not a disk.
  static func open(_ choice: TargetChoice, workload: Workload, options: TargetOptions) throws(BenchError) -> Target {
    do throws(DriverError) {
      switch choice {
      case .socket(let path):
        let transport = try VhostUserTransport(
          path: path, memory: memory(workload, options), reconnection: options.keepsRecords ? Reconnection() : nil,
          logsWrites: options.logsWrites)
        let peer = options.backendProcess ?? clinux_peer_process(transport.frontend.descriptor)
        return try wrap(transport, path, workload, options, ProcessMeter(process: peer > 0 ? peer : nil))
      case .memoryFile(let path):
        let transport = try MemoryFileTransport(path: path)
        let process = options.backendProcess ?? Int32(clamping: transport.file.deviceProcess)
        return try wrap(transport, path, workload, options, ProcessMeter(process: process > 0 ? process : nil))
      case .device(let device, let name):
        let transport: InProcessTransport
        do { transport = try InProcessTransport(device: device, memory: try memory(workload, options)) } catch {
          throw DriverError.refused("\(error)")
        }
        return try wrap(transport, name, workload, options, OwnProcessMeter(device: device))
      case .echo: preconditionFailure("an echo is not a disk")
      }
    } catch {
      if case .badRequest(let what) = error { throw .target(what) }
      throw .target("\(error)")
    }
  }

  private static func memory(_ workload: Workload, _ options: TargetOptions) throws(DriverError) -> DriverMemory {
    do { return try memory(workload, ringSize: options.ringSize, regions: options.memoryRegions) } catch {
      throw .badRequest("\(error)")
    }
  }

  private static func wrap(
    _ transport: any DriverTransport, _ name: String, _ workload: Workload, _ options: TargetOptions,
    _ meter: any BackendMeter
  ) throws(DriverError) -> Target {
    do {
      return try Target(
        transport, name: "\(name) (\(transport.name))", workload: workload, ringSize: options.ringSize,
        ring: options.ring, avoiding: options.avoided, meter: meter)
    } catch { throw .badRequest("\(error)") }
  }
}
