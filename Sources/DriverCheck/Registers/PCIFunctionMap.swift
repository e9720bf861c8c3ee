/// Where the structures of a virtio-pci function are, as a driver finds them: by its capabilities (virtio 4.1.4).
internal import VirtioRegisters

/// Read once, from the configuration space.
struct PCIFunctionMap {
  enum Kind: UInt8 {
    case common = 1
    case notify = 2
    case isr = 3
    case device = 4
    case window = 5
  }

  struct Region {
    var kind: Kind
    var bar: Int
    var offset: UInt32
    var length: UInt32

    func contains(_ bar: Int, _ place: UInt32, _ width: Int) -> Bool {
      bar == self.bar && place >= offset && UInt64(place) + UInt64(width) <= UInt64(offset) + UInt64(length)
    }
  }

  private(set) var regions: [Region] = []
  /// Bytes of the configuration space that belong to virtio's capabilities, except those of the window.
  private(set) var capabilities: [Range<UInt32>] = []
  /// The offset of the window's capability; `nil`: there is none.
  private(set) var window: UInt32?
  private(set) var notifyMultiplier: UInt32 = 0
  /// The offset of the MSI-X capability; `nil`: there is none.
  private(set) var msix: UInt32?
  private(set) var vectors = 0

  init(_ registers: RegisterModel) {
    var registers = registers
    func read(_ offset: UInt32, _ width: Int) -> UInt32 {
      UInt32(truncatingIfNeeded: registers.read(offset: offset, width: width).value)
    }
    guard registers.interface.isPCI else { return }
    var place = read(0x34, 1) & 0xfc
    // The configuration space has no room for more capabilities.
    for _ in 0..<48 where place >= 0x40 {
      let (kind, next) = (read(place, 1), read(place + 1, 1) & 0xfc)
      switch kind {
      case 0x09:
        let length = read(place + 2, 1)
        let type = Kind(rawValue: UInt8(truncatingIfNeeded: read(place + 3, 1)))
        if type == .window {
          window = place
          capabilities.append(place..<place + 4)
        } else {
          capabilities.append(place..<place + length)
        }
        if type == .notify { notifyMultiplier = read(place + 16, 4) }
        if let type, type != .window {
          regions.append(
            Region(kind: type, bar: Int(read(place + 4, 1)), offset: read(place + 8, 4), length: read(place + 12, 4)))
        }
      case 0x11:
        msix = place
        vectors = Int(read(place + 2, 2) & 0x7ff) + 1
      default: break
      }
      place = next
    }
  }

  func region(_ bar: Int, _ offset: UInt32, _ width: Int) -> Region? {
    regions.first { $0.contains(bar, offset, width) }
  }
}
