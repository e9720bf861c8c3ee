/// What the registers of a memory file hold besides status, features and queues, for each register interface.
internal import MemoryFile
internal import VirtioCore
internal import VirtioRegisters

/// Lines for people. virtio-mmio version 2 has nothing to add: everything in it is in the picture anyway.
enum RegisterPicture {
  static func draw(_ snapshot: MemoryFileSnapshot) -> [String] {
    let interface = snapshot.layout.interface
    let registers = snapshot.registers
    switch interface {
    case .mmio: return []
    case .mmioLegacy:
      let size = registers.guestPageSize
      return [
        "  registers   virtio-mmio version 1, \(size == 0 ? "no page size yet" : "pages of \(size) bytes")"
          + (registers.servesEarly ? ", in use before DRIVER_OK" : "")
      ]
    case .pci, .pciLegacy, .pciTransitional:
      let name =
        switch interface {
        case .pciLegacy: "legacy virtio-pci"
        case .pciTransitional: "transitional virtio-pci"
        default: "virtio-pci"
        }
      let early = registers.servesEarly ? ", in use before DRIVER_OK" : ""
      guard let function = registers.pci, function.configuration.count == 256 else {
        return ["  registers   \(name), not touched yet"]
      }
      return ["  registers   \(name)\(early)"] + draw(function, queues: registers.queues.count)
    }
  }

  private static func draw(_ function: PCIImage, queues: Int) -> [String] {
    let bytes = function.configuration
    func word(_ offset: Int) -> UInt32 {
      (0..<4).reduce(0) { $0 | UInt32(bytes[offset + $1]) << UInt32($1 * 8) }
    }
    let command = word(0x04)
    let names: [(UInt32, String)] = [(1, "I/O"), (2, "memory"), (4, "bus master"), (0x400, "INTx disabled")]
    let set = names.filter { command & $0.0 != 0 }.map(\.1)
    var lines = ["    command   \(set.isEmpty ? "nothing enabled" : set.joined(separator: ", "))"]
    for (index, what) in [(0, "legacy block"), (1, "MSI-X"), (4, "virtio structures")] {
      let low = word(0x10 + index * 4)
      // Zero: the function does not have this BAR, or nobody has assigned it an address.
      guard low != 0 else { continue }
      let isWide = low & 7 == 4
      let address = UInt64(low & (low & 1 != 0 ? ~3 : ~15)) | (isWide ? UInt64(word(0x14 + index * 4)) << 32 : 0)
      lines.append("    BAR \(index)     \(low & 1 != 0 ? "port" : "at") 0x\(String(address, radix: 16)), \(what)")
    }
    let control = word(0x98) >> 16
    guard control & 0x8000 != 0 else { return lines + ["    interrupts on the line (INTx)"] }
    let count = Int(control & 0x7ff) + 1
    let masked = (0..<count).filter { function.table.indices.contains($0 * 4 + 3) && function.table[$0 * 4 + 3] & 1 != 0 }
    func vector(_ number: UInt16) -> String { number == 0xffff ? "none" : "\(number)" }
    let mapped = function.queueVectors.prefix(min(queues, 16)).map(vector).joined(separator: ", ")
    lines.append("    MSI-X     \(count) vectors\(control & 0x4000 != 0 ? ", all masked" : "")")
    lines.append(
      "    vectors   configuration \(vector(function.configurationVector)); queues \(mapped)\(queues > 16 ? ", …" : "")")
    let list = masked.prefix(16).map(String.init).joined(separator: ", ")
    if !masked.isEmpty { lines.append("    masked    \(list)\(masked.count > 16 ? ", …" : "")") }
    return lines
  }
}
