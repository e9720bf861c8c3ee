/// The layers around a device's engines, and the only place that adds them.
internal import SystemPackage
internal import VirtioCore

/// Shared by all workers of a device.
struct EngineLayers: Sendable {
  /// Injects faults.
  var faults: FaultInjector?
  /// Observes the operations on the medium.
  var witness: (any MediumWitness)?
  /// A deliberate mistake that a checker of devices has to find.
  var plant: PlantedMistake?

  /// - Returns: `nil` if there are none, so that there is no cost.
  init?(_ options: BlockDeviceOptions) {
    guard !options.faults.isEmpty || options.witness != nil || options.plant != nil else { return nil }
    faults = options.faults.isEmpty ? nil : FaultInjector(options.faults)
    witness = options.witness
    plant = options.plant
  }

  /// The witness is next to the engine, so that it sees what really reaches the medium.
  func around(_ engine: any EngineObject) throws(Errno) -> any EngineObject {
    var top = engine
    if let witness { top = RecordingLayer(top, witness) }
    if let plant { top = try PlantedLayer(top, plant, witness) }
    if let faults { top = FaultLayer(top, faults) }
    return top
  }
}

extension EnginePlan {
  /// The engine of this plan as an object. - Throws: if it cannot be made here.
  func makeObject(isSlow: Bool, mailbox: Int32) throws(Errno) -> any EngineObject {
    let descriptor = image.descriptor
    if let chain = image.chain, kind != .null { return EngineBox(try Qcow2Engine(chain, kind, mailbox: mailbox)) }
    switch kind {
    case .uring:
      return EngineBox(
        try UringEngine(descriptor: descriptor, isSlow: isSlow, mailbox: mailbox, depth: depth, setup: setup))
    case .aio: return EngineBox(try AioEngine(descriptor: descriptor, isSlow: isSlow, mailbox: mailbox, depth: depth))
    case .threads: return EngineBox(try ThreadPoolEngine(descriptor: descriptor, mailbox: mailbox))
    case .mapped:
      guard let mapped else { throw .noMemory }
      return EngineBox(try MappedEngine(mapped, descriptor: descriptor, mailbox: mailbox))
    case .cached:
      guard let mapped else { throw .noMemory }
      return EngineBox(try CachedEngine(mapped, descriptor: descriptor, mailbox: mailbox, depth: depth, setup: setup))
    case .null: return EngineBox(try NullEngine(mailbox: mailbox))
    case .nbd:
      guard let export = image.export else { throw .noMemory }
      return EngineBox(try NBDEngine(export, self, mailbox: mailbox))
    case .rbd:
      guard let rbd = image.rbd else { throw .noMemory }
      return EngineBox(try RBDEngine(rbd, self, mailbox: mailbox))
    case .sync, .auto: return EngineBox(try SyncEngine(descriptor: descriptor, mailbox: mailbox))
    }
  }
}
