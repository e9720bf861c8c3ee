/// virtio-pci (virtio 4.1) as a value: an access goes in, a number and a list of effects come out.
internal import VirtioCore

/// One PCI function: configuration space, BARs, MSI-X. Its owner sends the interrupts, to `route(of:)`; the owner also keeps
/// the pending state (ISR, and sources held back while their vector is masked), because queues set it at any moment.
///
///     var function = PCIRegisters(face: face, interface: .pci)
///     let (identity, _) = function.read(.configuration, offset: 0, width: 4)      // 0x10421af4
///     for effect in function.write(.bar(4), offset: 0x14, width: 1, value: 1) { … }
public struct PCIRegisters: RegisterWindow {
  /// The address space of an access.
  public enum Space: Hashable, Sendable {
    /// The configuration space; accesses beyond its 256 bytes are not answered.
    case configuration
    /// The range of a base address register, 0 … 5, if the command register enables decoding.
    case bar(Int)
  }

  public var device: DeviceRegisters
  let layout: PCILayout
  var space: PCIConfigurationSpace
  var table: MSIXTable
  /// `config_msix_vector`.
  var configurationVector = DeviceRegisters.noVector
  /// `config_generation` has only 8 bits: it is incremented when it is read after a change, so that even 256 changes between
  /// two reads are noticed.
  var generation: UInt8 = 0
  var generationSeen: UInt32

  /// - Parameter interface: one of the PCI ones.
  public init(face: RegisterFace, interface: RegisterInterface) {
    precondition(interface.isPCI, "\(interface.name) has no PCI function")
    device = DeviceRegisters(face: face, interface: interface)
    layout = PCILayout(queueCount: face.queueCount)
    space = PCIConfigurationSpace(interface: interface, deviceID: face.deviceID, layout: layout)
    table = MSIXTable(vectors: layout.vectors)
    generationSeen = face.configurationGeneration()
  }

  // MARK: Accesses

  /// A read of `width` bytes at any offset. It can have effects: reading ISR clears it, and a read of the access window reads
  /// the register behind it.
  public mutating func read(_ space: Space, offset: UInt32, width: Int) -> (value: UInt64, effects: [Effect]) {
    guard AccessBytes.widths.contains(width) else { return (AccessBytes.ones(width: width), []) }
    switch space {
    case .configuration: return readConfiguration(Int(offset), width)
    case .bar(let index):
      guard decodes(index, offset, width) else { return (AccessBytes.ones(width: width), []) }
      switch index {
      case PCILayout.legacyBar: return readLegacy(offset, width)
      case PCILayout.msixBar: return (readMSIX(offset, width), [])
      default: return readVirtio(offset, width)
      }
    }
  }

  /// A write of the low `width` bytes of `value` at any offset.
  public mutating func write(_ space: Space, offset: UInt32, width: Int, value: UInt64) -> [Effect] {
    guard AccessBytes.widths.contains(width) else { return [] }
    switch space {
    case .configuration: return writeConfiguration(Int(offset), AccessBytes.bytes(value, width: width))
    case .bar(let index):
      guard decodes(index, offset, width) else { return [] }
      switch index {
      case PCILayout.legacyBar: return writeLegacy(offset, width, value)
      case PCILayout.msixBar:
        table.write(offset: offset, width: width, value: value)
        return [.interruptRoutesChanged]
      default: return writeVirtio(offset, width, value)
      }
    }
  }

  /// The BAR exists, contains the whole access, and the command register enables decoding.
  private func decodes(_ index: Int, _ offset: UInt32, _ width: Int) -> Bool {
    guard let size = space.barSize(index), UInt64(offset) + UInt64(width) <= size else { return false }
    return space.commands(space.isPort(index) ? PCIConfigurationSpace.ioSpace : PCIConfigurationSpace.memorySpace)
  }

  /// The BAR that decodes an address, for owners whose drivers use addresses; `nil`: none does.
  ///
  /// - Parameter isPort: the address is in the I/O space.
  public func bar(at address: UInt64, isPort: Bool) -> (index: Int, offset: UInt32)? {
    for index in 0..<6 {
      guard let base = space.barAddress(index), space.isPort(index) == isPort, address >= base else { continue }
      let offset = address - base
      guard offset <= UInt64(UInt32.max), decodes(index, UInt32(offset), 1) else { continue }
      return (index, UInt32(offset))
    }
    return nil
  }

  // MARK: Configuration space

  private mutating func readConfiguration(_ offset: Int, _ width: Int) -> (value: UInt64, effects: [Effect]) {
    var effects: [Effect] = []
    if touchesWindow(offset, width), let (bar, place, length) = window {
      let (value, read) = readBehindWindow(bar, place, length)
      space.setWindowData(AccessBytes.bytes(value, width: length))
      effects = read
    }
    let bytes = (offset..<offset + width).map { place -> UInt8 in
      guard place < PCIConfigurationSpace.size else { return 0xff }
      let pending = place == PCIConfigurationSpace.status && isInterruptPending
      return space.bytes[place] | (pending ? PCIConfigurationSpace.interruptStatus : 0)
    }
    return (AccessBytes.number(bytes), effects)
  }

  private mutating func writeConfiguration(_ offset: Int, _ bytes: [UInt8]) -> [Effect] {
    space.write(offset, bytes)
    var effects = device.setMaster(space.commands(PCIConfigurationSpace.busMaster))
    let touched = offset..<offset + bytes.count
    let routing = [PCIConfigurationSpace.command, PCIConfigurationSpace.command + 1, PCIConfigurationSpace.msix + 3]
    if routing.contains(where: touched.contains) { effects.append(.interruptRoutesChanged) }
    if touchesWindow(offset, bytes.count), let (bar, place, length) = window {
      let data = UInt64(space.word(PCIConfigurationSpace.windowData))
      switch bar {
      case PCILayout.virtioBar: effects += writeVirtio(place, length, data)
      default: effects += writeLegacy(place, length, data)
      }
    }
    return effects
  }

  private func touchesWindow(_ offset: Int, _ width: Int) -> Bool {
    device.interface.hasModern
      && (offset..<offset + width).overlaps(PCIConfigurationSpace.windowData..<PCIConfigurationSpace.windowData + 4)
  }

  /// The registers that the access window is set to (virtio 4.1.4.9); it works even before BARs have addresses. `nil` if its
  /// settings are invalid: a driver must not use it then, and accesses have no effect.
  private var window: (bar: Int, offset: UInt32, length: Int)? {
    let bar = Int(space.bytes[PCIConfigurationSpace.windowBar])
    let offset = space.word(PCIConfigurationSpace.windowOffset)
    let length = space.word(PCIConfigurationSpace.windowLength)
    guard bar == PCILayout.virtioBar || bar == PCILayout.legacyBar, [1, 2, 4].contains(length) else { return nil }
    guard let size = space.barSize(bar), UInt64(offset) + UInt64(length) <= size else { return nil }
    return (bar, offset, Int(length))
  }

  private mutating func readBehindWindow(
    _ bar: Int, _ offset: UInt32, _ length: Int
  ) -> (value: UInt64, effects: [Effect]) {
    bar == PCILayout.virtioBar ? readVirtio(offset, length) : readLegacy(offset, length)
  }

  // MARK: Interrupts

  /// The bits of ISR.
  var isr: UInt32 { device.face.interruptStatus() & DeviceRegisters.interruptBits }

  /// An interrupt is pending for INTx (PCI Status, Interrupt Status; virtio 4.1.4.5.1).
  private var isInterruptPending: Bool { isr != 0 && !space.isMSIXEnabled }

  /// The INTx line: level. Reading ISR deasserts it.
  public var isInterruptAsserted: Bool {
    isInterruptPending && !space.commands(PCIConfigurationSpace.interruptDisable)
  }

  /// Where a notification goes now (virtio 4.1.5.3, 4.1.5.4). Even with MSI-X enabled, a configuration change also sets its bit
  /// in ISR.
  public func route(of source: InterruptSource) -> InterruptRoute {
    guard space.isMSIXEnabled else {
      return space.commands(PCIConfigurationSpace.interruptDisable) ? .lineDisabled : .line
    }
    guard let vector = vector(of: source) else { return .none }
    // A message is a write to memory, so it needs bus mastering.
    let isMasked = space.isMSIXMasked || table.isMasked(vector) || !device.isMaster
    return isMasked ? .masked(vector: vector) : .message(vector: vector, table.message(vector))
  }

  private func vector(of source: InterruptSource) -> Int? {
    let vector: UInt16 =
      switch source {
      case .configuration: configurationVector
      case .queue(let queue): device.queues.indices.contains(queue) ? device.queues[queue].vector : DeviceRegisters.noVector
      }
    return vector == DeviceRegisters.noVector ? nil : Int(vector)
  }

  /// The vector if it exists, otherwise none: an impossible mapping reads back as NO_VECTOR (virtio 4.1.5.1.2.1).
  func checkedVector(_ value: UInt16) -> UInt16 { Int(value) < layout.vectors ? value : DeviceRegisters.noVector }

  mutating func setConfigurationVector(_ value: UInt16) -> [Effect] {
    configurationVector = checkedVector(value)
    return [.interruptRoutesChanged]
  }

  mutating func setQueueVector(_ value: UInt16) -> [Effect] {
    guard let queue = device.selectedQueue else { return [] }
    device.queues[queue].vector = checkedVector(value)
    return [.interruptRoutesChanged]
  }

  private func readMSIX(_ offset: UInt32, _ width: Int) -> UInt64 {
    guard offset >= layout.pendingOffset else { return table.read(offset: offset, width: width) }
    guard width == 4 || width == 8, Int(offset) % width == 0 else { return 0 }
    let first = Int(offset - layout.pendingOffset) * 8
    var bits: UInt64 = 0
    for source in sources {
      guard case .masked(let vector) = route(of: source), (first..<first + width * 8).contains(vector) else { continue }
      if device.face.isHeldBack(source) { bits |= 1 << UInt64(vector - first) }
    }
    return bits
  }

  private var sources: [InterruptSource] { [.configuration] + device.queues.indices.map { .queue($0) } }
}
