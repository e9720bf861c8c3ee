/// The meaning of a register access, on any bus.

/// One action of a driver, as the rules see it.
enum RegisterEvent: Hashable {
  enum AddressPart: Hashable, CaseIterable {
    case descriptors, driver, device
  }

  case deviceFeaturesSelect(UInt32)
  case deviceFeaturesRead(UInt32)
  case driverFeaturesSelect(UInt32)
  case driverFeaturesWrite(UInt32)
  case statusRead(UInt8)
  case statusWrite(UInt8)
  case queueSelect(UInt32)
  case queueSizeRead(UInt32)
  case queueSizeWrite(UInt32)
  case queueAddressWrite(AddressPart)
  case queueReadyRead(UInt32)
  case queueReadyWrite(UInt32)
  case queueResetRead(UInt32)
  case queueResetWrite(UInt32)
  /// Legacy: the address of the whole ring.
  case queuePageWrite(UInt32)
  /// - Parameter queue: from the address; `nil`: it is in the value.
  case notify(queue: UInt32?, value: UInt32, width: Int)
  case interruptStatusRead(UInt32)
  case interruptAcknowledge(UInt32)
  case generationRead
  /// Bytes of the device's configuration space.
  case configurationRead(offset: Int, width: Int)
  case configurationWrite(offset: Int, width: Int)
  /// Something that no common rule covers.
  case other
}
