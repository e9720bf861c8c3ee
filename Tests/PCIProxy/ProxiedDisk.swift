/// A disk as a PCI function of QEMU's: the registers' effects are executed at once, one after the other.
import DriverCheck
import Glibc
import VirtioBlkDevice
import VirtioCore
import VirtioRegisters

/// Used on one thread.
final class ProxiedDisk {
  private let device: any VirtioDevice
  private let check: DriverCheck
  private let watch: any RegisterWatch
  private let attended: AttendedDevice
  private let words: Mapping
  private var registers: PCIRegisters
  private var memory: GuestMemory?
  private var kicks: [OwnedDescriptor] = []
  /// Number of accesses to the function, by kind.
  private(set) var accesses: [String: Int] = [:]
  /// Signalled by every queue; `registers.isInterruptAsserted` tells the line's level.
  let rung: DoorbellWatch
  /// QEMU's descriptors, once it has sent them: one asserts the line, the other tells that the guest's interrupt controller is
  /// ready for it again.
  private(set) var line: (assert: OwnedDescriptor, again: OwnedDescriptor)?

  init(image path: String, _ interface: RegisterInterface, queues: Int, zoned: ZonedOptions?) throws {
    var options = BlockDeviceOptions()
    options.queueCount = queues
    var imageOptions = ImageOptions(path: path)
    imageOptions.zoned = zoned
    imageOptions.zoned?.queues = queues
    let image = try ImageFile(imageOptions)
    options.requestedFeatures = .ringReset
    check = DriverCheck(name: "the function")
    device = check.watch(try BlockDevice(image: image, options: options))
    watch = check.registers(interface, of: device, isNew: true)
    attended = AttendedDevice(device)
    words = try Mapping(anonymous: 4096)
    let status = unsafe SharedCell<UInt32>(words.base)
    rung = try DoorbellWatch(unsafe Doorbell(SharedCell<UInt32>(words.base + 64)), name: "line")
    for _ in 0..<queues { kicks.append(try .eventCounter()) }
    registers = PCIRegisters(face: RegisterFace(device, interruptStatus: { status.loadAcquire() }), interface: interface)
    watch.begins(with: .pci(registers))
  }

  /// The report on the guest's driver.
  var report: String { DriverReport.text([check.report], isWhole: false) }

  private var status: SharedCell<UInt32> { unsafe SharedCell(words.base) }
  private var bell: Doorbell { unsafe Doorbell(SharedCell(words.base + 64)) }

  func close() {
    attended.stopAllAndWait()
    rung.stop()
  }

  /// Turns the line's level into an edge each time that QEMU has to look at it.
  func lineChanged() {
    if let line, registers.isInterruptAsserted { EventCounter.signal(line.assert.rawValue) }
  }

  func handleEvents() {
    for event in attended.takeEvents() {
      guard case .queueFailed(let queue, let error) = event else { continue }
      print("queue \(queue) failed: \(error)")
      if registers.needReset() { notifyConfigurationChange() }
    }
  }

  private func notifyConfigurationChange() {
    status.formUnion(2)
    bell.ring()
  }

  func handle(_ message: ProxyMessage, _ link: ProxyLink) {
    switch message.command {
    case .memory: setMemory(message)
    case .interruptDescriptors:
      if message.descriptors.count == 2 { line = (message.descriptors[0], message.descriptors[1]) }
    case .reset:
      perform(registers.write(.bar(4), offset: 0x14, width: 1, value: 0))
      link.answer(0)
    case .configurationRead, .configurationWrite:
      let (address, value, width) = (
        message.word(0, as: UInt32.self), message.word(4, as: UInt32.self), message.word(8, as: Int32.self)
      )
      accesses["configuration", default: 0] += 1
      if message.command == .configurationRead {
        link.answer(read(.configuration, address, Int(width)))
      } else {
        write(.configuration, address, Int(width), UInt64(value))
        link.answer(0)
      }
    case .barRead, .barWrite:
      let (address, value) = (message.word(0, as: UInt64.self), message.word(8, as: UInt64.self))
      let (width, isMemory) = (Int(message.word(16, as: UInt32.self)), message.word(20, as: UInt8.self) != 0)
      guard let (bar, offset) = registers.bar(at: address, isPort: !isMemory) else {
        accesses["nowhere", default: 0] += 1
        return link.answer(.max)
      }
      accesses["BAR \(bar)", default: 0] += 1
      if message.command == .barRead {
        link.answer(read(.bar(bar), offset, width))
      } else {
        write(.bar(bar), offset, width, value)
        link.answer(0)
      }
    case .answer: break
    }
  }

  private func read(_ space: PCIRegisters.Space, _ offset: UInt32, _ width: Int) -> UInt64 {
    let (value, effects) = registers.read(space, offset: offset, width: width)
    note(space, offset, width, isWrite: false, value)
    perform(effects)
    return value
  }

  private func write(_ space: PCIRegisters.Space, _ offset: UInt32, _ width: Int, _ value: UInt64) {
    let effects = registers.write(space, offset: offset, width: width, value: value)
    note(space, offset, width, isWrite: true, value)
    perform(effects)
  }

  private func note(_ space: PCIRegisters.Space, _ offset: UInt32, _ width: Int, isWrite: Bool, _ value: UInt64) {
    watch.accessed(
      RegisterAccess(offset: RegisterModel.offset(space, offset), width: width, isWrite: isWrite, value: value))
  }

  /// The guest's memory map is sent again whenever it changes. Running queues continue in the new one.
  private func setMemory(_ message: ProxyMessage) {
    var regions: [GuestRegion] = []
    for (index, descriptor) in message.descriptors.enumerated() {
      let (start, size) = (message.word(index * 8, as: UInt64.self), message.word(64 + index * 8, as: UInt64.self))
      let offset = message.word(128 + index * 8, as: UInt64.self)
      guard let mapping = try? Mapping(descriptor: descriptor.rawValue, count: Int(clamping: offset &+ size)) else { continue }
      regions.append(GuestRegion(start: GuestAddress(start), size: size, mapping: mapping, offset: Int(offset)))
    }
    regions.sort { $0.start.rawValue < $1.start.rawValue }
    guard let memory = try? GuestMemory(regions) else { return print("the memory map cannot be used") }
    let running = registers.readyQueues.filter { attended.state(of: $0.queue) == .running }
    let places = running.map { ($0, attended.stopAndWait(queue: $0.queue)) }
    self.memory = memory
    for ((queue, configuration), position) in places { start(queue, configuration, position) }
  }

  private func perform(_ effects: [RegisterEffect]) {
    for effect in effects {
      switch effect {
      case .featuresFixed(let features): device.negotiated(features)
      case .live: print("live with features \(registers.features), status \(registers.status.rawValue)")
      case .startQueue(let queue, let configuration): start(queue, configuration, nil)
      case .stopQueue(let queue), .pauseQueue(let queue): _ = attended.stopAndWait(queue: queue)
      case .resetQueue(let queue):
        _ = attended.stopAndWait(queue: queue)
        registers.queueResetFinished(queue)
      case .notify(let queue): EventCounter.signal(kicks[queue].rawValue)
      case .acknowledgeInterrupt(let bits): status.subtract(bits)
      case .configWrite(let offset, let bytes):
        if device.writeConfiguration(at: offset, bytes) { registers.configurationWritten(at: offset, bytes) }
      case .interruptRoutesChanged: bell.ring()
      case .configurationChanged: notifyConfigurationChange()
      case .reset:
        attended.stopAllAndWait()
        device.reset()
        status.storeRelease(0)
      }
    }
  }

  private func start(_ queue: Int, _ configuration: QueueConfiguration, _ position: QueuePosition?) {
    guard let memory else { return print("there is no memory yet") }
    let used = RingIndices(configuration, in: memory)?.used ?? 0
    let activation = Activation(
      queue: queue, memory: memory, features: registers.features, configuration: configuration,
      position: position
        ?? (registers.features.contains(.packedRing) ? .start(registers.features) : QueuePosition(available: used, used: used)),
      kick: .eventCounter(kicks[queue]), call: .doorbell(bell, interruptStatus: status), publishesInOrder: true)
    do { try attended.startAndWait(activation) } catch {
      print("queue \(queue) was not started: \(error)")
      if registers.needReset() { notifyConfigurationChange() }
    }
  }

  /// Signalled when the device has events.
  var eventDescriptor: Int32 { device.eventDescriptor }
}
