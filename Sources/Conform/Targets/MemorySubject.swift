/// A device on a memory file.
public import GuestDriver
internal import MemoryFile
internal import VirtioCore
internal import VirtioRegisters

/// The process that serves a memory file.
public class MemorySubject: Subject {
  public let name: String
  public let bus: Bus
  let path: String
  private let prefersLegacy: Bool

  /// - Parameters:
  ///   - name: for people; `nil`: the path and the registers.
  ///   - prefersLegacy: use the older one of two interfaces.
  public init(path: String, prefersLegacy: Bool = false, name: String? = nil) throws {
    self.path = path
    self.prefersLegacy = prefersLegacy
    let file = try MemoryFile.open(path: path)
    switch file.layout.interface {
    case .mmio: bus = .mmio
    case .mmioLegacy: bus = .mmioLegacy
    case .pci: bus = .pci
    case .pciLegacy: bus = .pciLegacy
    case .pciTransitional: bus = .pciTransitional
    }
    self.name = name ?? "memory file \(path), \(bus.rawValue)"
  }

  public func connect(_ settings: Settings) throws -> any DriverTransport {
    try MemoryFileTransport(path: path, milliseconds: Int(settings.limit / .milliseconds(1)), prefersLegacy: prefersLegacy)
  }

  /// A mailbox as a port.
  struct Port: RegisterPort {
    let file: MemoryFileDriver
    func read(_ offset: UInt32, _ width: Int) throws -> UInt64 { try file.read(offset, width: width) }
    func write(_ offset: UInt32, _ width: Int, _ value: UInt64) throws { try file.write(offset, width: width, value) }
  }

  public func registers(of transport: any DriverTransport) -> (any RegisterPort)? {
    (transport as? MemoryFileTransport).map { Port(file: $0.file) }
  }

  public func renew() throws {}
  public var resize: ((UInt64) throws -> Void)? { nil }
}
