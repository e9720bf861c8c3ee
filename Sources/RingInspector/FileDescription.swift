/// The picture as data for programs: what `vmm-blk inspect --json` prints. Addresses are numbers.
internal import MemoryFile
internal import VirtioCore
internal import VirtioRegisters

/// A memory file, or the queues of a raw one.
public struct FileDescription: Encodable, Sendable {
  struct Device: Encodable {
    let present: Bool
    let process: UInt32
    let epoch: UInt32
  }

  struct Header: Encodable {
    let memoryBase: UInt64
    let memorySize: UInt64
    let maximumQueues: Int
  }

  struct Queue: Encodable {
    let queue: Int
    let size: UInt16
    let ready: Bool
    let descriptorTable: UInt64
    let availableRing: UInt64
    let usedRing: UInt64
    let available: Ring?
    let used: Ring?
    let kicks: UInt32?
    let calls: UInt32?
    let pendingCount: Int
    let pending: [Chain]
    let usedElements: [Used]
    let problems: [String]
  }

  struct Ring: Encodable {
    let flags: UInt16
    let index: UInt16
    /// used_event of the available ring, avail_event of the used one; with EVENT_IDX only.
    let event: UInt16?
  }

  struct Used: Encodable {
    let index: UInt16
    let id: UInt32
    let length: UInt32
    let chain: Chain?
  }

  struct Chain: Encodable {
    let index: UInt16
    let head: UInt16
    let type: String?
    let sector: UInt64?
    let bytes: UInt64?
    let status: String?
    let descriptors: [Descriptor]
    let indirect: [Descriptor]
    let problems: [String]
  }

  struct Descriptor: Encodable {
    let index: UInt16
    let address: UInt64
    let length: UInt32
    let flags: [String]
    let next: UInt16?
  }

  /// What a PCI function has beside status, features and queues.
  struct Function: Encodable {
    let command: UInt32
    let bars: [UInt32]
    let messages: Bool
    let configurationVector: UInt16?
    let queueVectors: [UInt16?]
  }

  var path: String?
  /// The name of the register interface.
  var registers: String?
  var function: Function?
  var header: Header?
  var device: Device?
  var driverPresent: Bool?
  var requestPending: Bool?
  var status: UInt8?
  var features: [String]?
  var interruptStatus: UInt32?
  let queues: [Queue]

  public init(_ picture: MemoryFilePicture) {
    let snapshot = picture.snapshot
    path = snapshot.path
    registers = snapshot.layout.interface.name
    function = snapshot.registers.pci.flatMap { Function($0, queues: snapshot.registers.queues.count) }
    header = Header(
      memoryBase: snapshot.layout.memoryBase.rawValue, memorySize: snapshot.layout.memorySize,
      maximumQueues: snapshot.layout.maximumQueues)
    device = Device(
      present: snapshot.isDeviceThere, process: snapshot.deviceProcess, epoch: snapshot.deviceEpoch)
    driverPresent = snapshot.isDriverThere
    requestPending = snapshot.isRequestPending
    status = snapshot.registers.status.rawValue
    features = MemoryFilePicture.featureNames(snapshot.registers.driverFeatures)
    interruptStatus = snapshot.interruptStatus
    queues = picture.queues.map {
      Queue($0, doorbells: snapshot.doorbells.indices.contains($0.queue) ? snapshot.doorbells[$0.queue] : nil)
    }
  }

  public init(queues: [QueuePicture]) { self.queues = queues.map { Queue($0, doorbells: nil) } }
}

extension FileDescription.Function {
  init?(_ image: PCIImage, queues: Int) {
    let bytes = image.configuration
    guard bytes.count == 256 else { return nil }
    func word(_ offset: Int) -> UInt32 { (0..<4).reduce(0) { $0 | UInt32(bytes[offset + $1]) << UInt32($1 * 8) } }
    func vector(_ number: UInt16) -> UInt16? { number == 0xffff ? nil : number }
    command = word(0x04) & 0xffff
    bars = (0..<6).map { word(0x10 + $0 * 4) }
    messages = word(0x98) >> 31 != 0
    configurationVector = vector(image.configurationVector)
    queueVectors = image.queueVectors.prefix(queues).map(vector)
  }
}

extension FileDescription.Queue {
  init(_ picture: QueuePicture, doorbells: (kicks: UInt32, calls: UInt32)?) {
    let hasEvents = picture.features.contains(.eventIndex)
    queue = picture.queue
    size = picture.configuration.size
    ready = picture.ready
    descriptorTable = picture.configuration.descriptorTable.rawValue
    availableRing = picture.configuration.availableRing.rawValue
    usedRing = picture.configuration.usedRing.rawValue
    available = picture.rings.map {
      .init(flags: $0.availableFlags, index: $0.availableIndex, event: hasEvents ? $0.usedEvent : nil)
    }
    used = picture.rings.map {
      .init(flags: $0.usedFlags, index: $0.usedIndex, event: hasEvents ? $0.availableEvent : nil)
    }
    kicks = doorbells?.kicks
    calls = doorbells?.calls
    pendingCount = picture.pendingCount
    pending = picture.pending.map { .init($0.chain, position: $0.position, isUsed: false) }
    usedElements = picture.used.map { element in
      .init(
        index: element.position, id: element.id, length: element.length,
        chain: element.chain.map { .init($0, position: element.position, isUsed: true) })
    }
    problems = picture.problems
  }
}

extension FileDescription.Chain {
  init(_ chain: ChainPicture, position: UInt16, isUsed: Bool) {
    let words = BlockWords(chain)
    index = position
    head = chain.head
    type = words?.name
    sector = words?.sector
    bytes = words?.length
    status = isUsed ? chain.lastWritable.map { BlockWords.status($0.value) } : nil
    descriptors = chain.descriptors.map { .init($0) }
    indirect = chain.indirect.map { .init($0) }
    problems = chain.problems
  }
}

extension FileDescription.Descriptor {
  init(_ descriptor: DescriptorPicture) {
    index = descriptor.index
    address = descriptor.address.rawValue
    length = descriptor.length
    flags =
      (descriptor.hasNext ? ["NEXT"] : []) + (descriptor.isWritable ? ["WRITE"] : [])
      + (descriptor.isIndirect ? ["INDIRECT"] : [])
    next = descriptor.hasNext ? descriptor.next : nil
  }
}
