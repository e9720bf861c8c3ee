/// Saves a PCI function to a record and restores it.
internal import VirtioCore

extension PCIRegisters {
  /// The state as a plain record. A queue that is being reset is recorded as not ready: that is what its driver waits for.
  public var image: RegisterImage {
    var image = device.image
    var function = PCIImage()
    function.configuration = space.bytes
    function.configurationVector = configurationVector
    function.generation = generation
    function.queueVectors = device.queues.map { $0.resetting ? DeviceRegisters.noVector : $0.vector }
    function.table = table.words
    image.pci = function
    return image
  }

  /// A function in the state of a record, and the effects that bring a device to that state.
  ///
  /// - Parameters:
  ///   - image: any record; it is checked in the same way as a driver's writes.
  ///   - interface: one of the PCI ones.
  public static func restore(
    _ image: RegisterImage, face: RegisterFace, interface: RegisterInterface
  ) -> (registers: PCIRegisters, effects: [Effect], restoration: Restoration) {
    var registers = PCIRegisters(face: face, interface: interface)
    let function = image.pci ?? PCIImage()
    registers.space.write(0, function.configuration)
    registers.device.isMaster = registers.space.commands(PCIConfigurationSpace.busMaster)
    registers.table.replace(with: function.table)
    // The configuration may have changed in the meantime: the next read differs from the last one before.
    registers.generation = function.generation &+ 1
    let (effects, restoration) = registers.device.replay(
      image, legacyPageSize: interface.hasModern ? nil : Self.legacyPageSize)
    registers.configurationVector = registers.checkedVector(function.configurationVector)
    for (index, vector) in function.queueVectors.prefix(registers.device.queues.count).enumerated() {
      registers.device.queues[index].vector = registers.checkedVector(vector)
    }
    return (registers, effects, restoration)
  }
}
