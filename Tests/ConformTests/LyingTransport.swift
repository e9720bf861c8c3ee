/// A transport to this project's device that applies a mutant: it may hide features, or die.
import VirtioCore

@testable import GuestDriver

final class LyingTransport: DriverTransport {
  let inner: MemoryFileTransport
  let mutant: RegisterMutant
  private let onDeath: () -> Void
  var isDead = false { didSet { if isDead { onDeath() } } }

  init(_ inner: MemoryFileTransport, _ mutant: RegisterMutant, onDeath: @escaping () -> Void) {
    self.inner = inner
    self.mutant = mutant
    self.onDeath = onDeath
  }

  private func alive() throws(DriverError) -> MemoryFileTransport {
    guard !isDead else { throw .noDevice("it is dead") }
    return inner
  }

  var name: String { inner.name }
  var memory: DriverMemory { inner.memory }
  var ringShape: RingShape? { inner.ringShape }
  var hasFixedQueueSize: Bool { inner.hasFixedQueueSize }
  var connectionDescriptor: Int32? { inner.connectionDescriptor }
  var notifyRegister: NotifyRegister? {
    // The front of every register interface identifies the device, and ignores writes.
    mutant.losesData ? NotifyRegister(inner.file, RegisterTurn(), offset: 0, stride: 0) : inner.notifyRegister
  }

  func deviceID() throws(DriverError) -> UInt32 { try alive().deviceID() }
  func readConfiguration(at offset: Int, count: Int) throws(DriverError) -> [UInt8] {
    try alive().readConfiguration(at: offset, count: count)
  }
  func writeConfiguration(at offset: Int, _ bytes: [UInt8]) throws(DriverError) {
    try alive().writeConfiguration(at: offset, bytes)
  }
  func configurationGeneration() throws(DriverError) -> UInt32 { try alive().configurationGeneration() }
  func status() throws(DriverError) -> DeviceStatus { try alive().status() }
  func setStatus(_ status: DeviceStatus) throws(DriverError) { try alive().setStatus(status) }
  func reset() throws(DriverError) { try alive().reset() }
  func offeredFeatures() throws(DriverError) -> FeatureSet { try alive().offeredFeatures().subtracting(mutant.hides) }
  func acceptFeatures(_ features: FeatureSet) throws(DriverError) { try alive().acceptFeatures(features) }
  func queueCount() throws(DriverError) -> Int { try alive().queueCount() }
  func maximumQueueSize(_ queue: Int) throws(DriverError) -> UInt16 { try alive().maximumQueueSize(queue) }
  func findQueues(_ configurations: [QueueConfiguration]) throws(DriverError) -> [QueueLines] {
    try alive().findQueues(configurations)
  }
  func resetQueue(_ queue: Int) throws(DriverError) { try alive().resetQueue(queue) }
  func enableQueue(_ queue: Int, _ configuration: QueueConfiguration) throws(DriverError) {
    try alive().enableQueue(queue, configuration)
  }
  func deleteQueues() throws(DriverError) { try alive().deleteQueues() }
  func recover(_ standing: (_ queue: Int) -> QueueStanding) throws(DriverError) -> Int { try alive().recover(standing) }
  func waitForConfigurationChange(milliseconds: Int) throws(DriverError) -> Bool {
    try alive().waitForConfigurationChange(milliseconds: milliseconds)
  }
  func waitForFailure(queue: Int, milliseconds: Int) throws(DriverError) -> Bool {
    try alive().waitForFailure(queue: queue, milliseconds: milliseconds)
  }
}
