/// Why a back-end refused a message.
public import VirtioCore

/// A reason to refuse a message. A refused message changes nothing, and its descriptors are closed.
public enum Refusal: Error, Hashable, CustomStringConvertible {
  case wrongSize(Int)
  case wrongDescriptorCount(Int, expected: Int)
  case notServed
  case noSuchQueue(UInt32, count: Int)
  case badQueueSize(UInt32, limit: UInt16)
  case badBase(UInt32)
  case badEnable(UInt32)
  case queueRuns(Int)
  case misaligned(QueueError.RingPart, UInt64)
  case notInMemory(QueueError.RingPart, UInt64)
  case queue(QueueError)
  case featuresNotOffered(FeatureSet)
  case featuresNotAccepted(FeatureSet)
  case protocolFeaturesNotOffered(ProtocolFeatures)
  case configurationOutOfRange(offset: UInt32, size: UInt32)
  case configurationNotWritable(offset: UInt32, size: UInt32)
  case memory(MemoryTableError)
  case log(DirtyLogError)
  case logTooLarge(UInt64, limit: UInt64)
  case inflight(InflightError)
  case inflightQueueCount(UInt16, limit: Int)
  case inflightQueueSize(UInt16, limit: UInt16)
  /// - budget: bytes.
  case inflightOverBudget(UInt64, budget: UInt64)
  case noInflightRecord(queue: Int, count: Int)
  case inflightTooSmall(queue: Int, size: UInt16, limit: UInt16)
  case unusableDescriptor(DescriptorPurpose, String)
  case badTranslation(TranslationMessage)
  case translationNotInMemory(TranslationMessage)
  /// A ring cannot start without this translation.
  case translationRefused(TranslationMiss)
  /// A part of a ring is translated, but not contiguously.
  case ringScattered(QueueError.RingPart, UInt64)
  /// A ring waits for memory that does not come.
  case noMemory

  public var description: String {
    switch self {
    case .wrongSize(let size): "\(size) bytes are not the length of this message"
    case .wrongDescriptorCount(let count, let expected): "\(count) descriptors came instead of \(expected)"
    case .notServed: "this back-end does not offer it"
    case .noSuchQueue(let index, let count): "there is no queue \(index), only \(count) of them"
    case .badQueueSize(let size, let limit): "queue size \(size) is not a power of two from 1 to \(limit)"
    case .badBase(let base): "\(base) is not an index of a split ring"
    case .badEnable(let value): "\(value) is neither 0 nor 1"
    case .queueRuns(let index): "queue \(index) is running and cannot be changed"
    case .misaligned(let part, let address): "the \(part.rawValue) at user address 0x\(hexadecimal(address)) is misaligned"
    case .notInMemory(let part, let address):
      "the \(part.rawValue) at user address 0x\(hexadecimal(address)) is in no memory region; \(Self.remedy)"
    case .queue(let error): error.description
    case .featuresNotOffered(let features): "features \(features) were not offered"
    case .featuresNotAccepted(let features): "the device cannot work with the features \(features)"
    case .protocolFeaturesNotOffered(let features): "protocol features \(features) were not offered"
    case .configurationOutOfRange(let offset, let size):
      "\(size) bytes at offset \(offset) are outside the configuration space"
    case .configurationNotWritable(let offset, let size):
      "the \(size) bytes at offset \(offset) of the configuration space cannot be written by a driver"
    case .memory(let error): error.description
    case .log(let error): error.description
    case .logTooLarge(let size, let limit):
      "a dirty log of \(size) bytes is larger than the maximum of \(limit)"
    case .inflight(let error): error.description
    case .inflightQueueCount(let count, let limit):
      "in-flight records for \(count) queues were requested, and there can be 1 to \(limit)"
    case .inflightQueueSize(let size, let limit):
      "in-flight records for rings of \(size) entries were requested, and a ring has 1 to \(limit)"
    case .inflightOverBudget(let bytes, let budget):
      "in-flight records of \(bytes) bytes are more than is left of the \(budget) bytes that a disk may map; raise --memory-budget"
    case .noInflightRecord(let queue, let count):
      "queue \(queue) has no in-flight record: the front-end handed over those of \(count) queues, and needs one for each"
    case .inflightTooSmall(let queue, let size, let limit):
      "queue \(queue) has \(size) entries, and its in-flight record has room for \(limit)"
    case .unusableDescriptor(let purpose, let reason): "the \(purpose.rawValue) descriptor cannot be used: \(reason)"
    case .badTranslation(let said):
      "a translation of type \(said.type) of \(said.size) bytes at 0x\(hexadecimal(said.address)) with permission "
        + "\(said.permission) is invalid"
    case .translationNotInMemory(let said):
      "the \(said.size) bytes at user address 0x\(hexadecimal(said.userAddress)) that 0x\(hexadecimal(said.address)) is translated to "
        + "are not all in memory; \(Self.remedy)"
    case .translationRefused(let miss):
      "the IOMMU does not let the device \(miss.access.contains(.write) ? "write to" : "read") the ring at "
        + "0x\(hexadecimal(miss.address)), which only the guest can change"
    case .ringScattered(let part, let address):
      "the \(part.rawValue) at 0x\(hexadecimal(address)) is not contiguous behind the IOMMU: give the guest's device smaller rings "
        + "(queue-size=256)"
    case .noMemory: "it is set up and enabled, but the front-end has shared no memory; \(Self.remedy)"
    }
  }

  private static let remedy =
    "the guest's memory has to be shared: share=on for QEMU's memory backend, shared=on for Cloud Hypervisor's memory"

  /// Whether the connection has to be closed if the front-end cannot be told of the refusal: it would rely on memory that is
  /// not mapped here, on records that are not kept, or on features that were not negotiated.
  var endsConnectionUnlessAcknowledged: Bool {
    switch self {
    case .wrongSize, .memory, .featuresNotOffered, .featuresNotAccepted, .protocolFeaturesNotOffered, .inflight,
      .inflightQueueCount, .inflightQueueSize, .inflightOverBudget:
      true
    default: false
    }
  }

  private func hexadecimal(_ value: UInt64) -> String { String(value, radix: 16) }
}
