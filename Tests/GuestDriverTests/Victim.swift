/// The ring of the queue on which a test does what no driver may do, split or packed. Chains go by names that the test
/// chooses: heads or IDs.
import VirtioCore

@testable import GuestDriver

final class Victim {
  let format: RingFormat
  private let raw: DriverQueue.RawView
  /// Packed: each name's descriptors, which go into the ring when the chain is offered.
  private var chains: [UInt16: [RawDescriptor]] = [:]
  /// Packed: where the next chain goes, where the next used descriptor is expected, and what was found before it.
  var next = RingPosition.start
  private var nextUsed = RingPosition.start
  private var found: [(id: UInt32, length: UInt32)] = []

  init(_ queue: BlockQueue) {
    format = queue.ring.format
    raw = queue.ring.raw
  }

  /// The fields of the split ring.
  var split: RawRing {
    guard case .split(let ring) = raw else { preconditionFailure("this test is for split rings") }
    return ring
  }

  var packed: RawPackedRing {
    guard case .packed(let ring) = raw else { preconditionFailure("this test is for packed rings") }
    return ring
  }

  func setDescriptor(_ index: UInt16, _ descriptor: RawDescriptor) {
    switch raw {
    case .split(let ring): ring.setDescriptor(index, descriptor)
    case .packed: chains[index] = [descriptor]
    }
  }

  /// Links descriptors in order; the last one ends the chain. Split: they are written from `first` on.
  func link(_ descriptors: [RawDescriptor], from first: UInt16) {
    var linked = descriptors
    for place in linked.indices.dropLast() {
      linked[place].flags.insert(.next)
      linked[place].next = first &+ UInt16(place) &+ 1
    }
    switch raw {
    case .split(let ring):
      for place in linked.indices { ring.setDescriptor(first &+ UInt16(place), linked[place]) }
    case .packed: chains[first] = linked
    }
  }

  /// Makes chains available without checking whether that is allowed.
  func offer(_ names: UInt16...) {
    switch raw {
    case .split(let ring): for name in names { ring.offer(name) }
    case .packed(let ring):
      for name in names {
        var chain = chains[name] ?? []
        if let last = chain.indices.last { chain[last].next = name }
        next = ring.offer(chain, at: next)
      }
    }
  }

  /// How many chains the device has used since the beginning.
  var usedCount: UInt16 {
    switch raw {
    case .split(let ring): return ring.usedIndex.loadAcquire()
    case .packed(let ring):
      while ring.isUsed(nextUsed) {
        let element = ring.descriptor(nextUsed.slot)
        found.append((UInt32(element.next), element.flags.contains(.write) ? element.length : 0))
        let count = UInt16(chains[element.next]?.count ?? 1)
        nextUsed = nextUsed.advanced(by: count, size: ring.layout.size)
      }
      return UInt16(truncatingIfNeeded: found.count)
    }
  }

  /// Used elements from the `start`-th on.
  func usedElements(since start: UInt16) -> [(id: UInt32, length: UInt32)] {
    switch raw {
    case .split(let ring): return ring.usedElements(since: start)
    case .packed:
      _ = usedCount
      return Array(found.dropFirst(Int(start)))
    }
  }

  /// Writes random values into both sides' event words.
  func scribbleEvents(_ random: inout SeededRandom) {
    func word() -> UInt16 { UInt16(truncatingIfNeeded: random.next()) }
    switch raw {
    case .split(let ring):
      for place in [ring.usedEvent, ring.availableFlags, ring.availableEvent] { place.storeRelaxed(word()) }
    case .packed(let ring):
      for place in [
        ring.driverEventPosition, ring.driverEventFlags, ring.deviceEventPosition, ring.deviceEventFlags,
      ] { place.storeRelaxed(word()) }
    }
  }
}
