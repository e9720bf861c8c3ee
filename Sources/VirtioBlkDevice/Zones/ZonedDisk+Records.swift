/// How the state of zones gets to stable storage: tickets, issued in the lanes when something completes, and records, which
/// helper threads write for them.
internal import Synchronization
internal import VirtioCore

extension ZonedDisk {
  /// A ticket for a record that holds once everything that has completed by now is on stable storage. - Returns: 0 if nothing
  /// has changed.
  func ticket() -> UInt32 {
    with { state in
      var snapshot = Snapshot()
      for (index, zone) in state.table.zones.enumerated() {
        // States that are stored as the same word are the same.
        guard state.recorded.count > index, differs(index, zone.word, state) else { continue }
        snapshot.zones.append((index, Zone(word: zone.word, zone: index, geometry) ?? zone, state.resets[index]))
      }
      return add(snapshot, &state)
    }
  }

  /// Whether a zone has to be recorded: the newest record, or the one being written, differs, or is from before a reset that is
  /// not recorded yet.
  private func differs(_ zone: Int, _ word: UInt64, _ state: State) -> Bool {
    word != state.recorded[zone].word || state.recording.map { word != $0[zone].word } ?? false
      || state.resets[zone] != state.recordedResets[zone] && word != Self.emptyWord
  }

  private static let emptyWord = Zone(state: .empty).word

  /// The same for zones that were reset; it does not depend on other writes being on stable storage.
  func ticketOfResets() -> UInt32 {
    with { state in
      var snapshot = Snapshot()
      for (index, zone) in state.recorded.enumerated() where state.resets[index] != state.recordedResets[index] {
        guard differs(index, Self.emptyWord, state), zone.state != .readOnly, zone.state != .offline else { continue }
        let now = state.table.zones[index].state
        guard now != .readOnly, now != .offline, now != .notWritePointer else { continue }
        snapshot.zones.append((index, Zone(state: .empty), state.resets[index]))
      }
      return add(snapshot, isOfResets: true, &state)
    }
  }

  /// The same for one zone. The record covers all of the zone's contents: writes from before the write cache was turned off,
  /// writes after a durable one since it was turned on again, and zeroes. - Returns: also whether all of it is on stable
  /// storage by now; if not, a flush comes first.
  func ticket(zone: Int) -> (ticket: UInt32, isStable: Bool) {
    with { state in
      guard state.recorded.indices.contains(zone) else { return (0, false) }
      let now = state.table.zones[zone]
      let isStable = state.stable[zone] >= now.written
      guard differs(zone, now.word, state) else { return (0, isStable) }
      let snapshot = Snapshot(zones: [(zone, Zone(word: now.word, zone: zone, geometry) ?? now, state.resets[zone])])
      return (add(snapshot, &state), isStable)
    }
  }

  private func add(_ snapshot: Snapshot, isOfResets: Bool = false, _ state: inout State) -> UInt32 {
    guard !snapshot.zones.isEmpty else { return 0 }
    var snapshot = snapshot
    if !isOfResets {
      state.lastOrder += 1
      snapshot.order = state.lastOrder
    }
    let ticket = state.nextTicket
    state.nextTicket = ticket == .max ? 1 : ticket + 1
    state.snapshots[ticket] = snapshot
    return ticket
  }

  /// Nobody is waiting for this record.
  func forget(ticket: UInt32) { state.withLock { _ = $0.snapshots.removeValue(forKey: ticket) } }

  /// Writes the record for a ticket. It waits for the medium, so it is for a helper thread.
  ///
  /// - Parameter beforeWriting: called when the contents have been chosen and are not yet written; for tests.
  /// - Returns: false if it could not be written.
  func record(ticket: UInt32, beforeWriting: () -> Void = {}) -> Bool {
    recorder.withLock { _ in
      let found: (zones: [Zone], snapshot: Snapshot)? = with { state in
        guard state.failure == nil, let snapshot = state.snapshots.removeValue(forKey: ticket) else { return nil }
        var (zones, news) = (state.recorded, snapshot)
        news.zones.removeAll { index, _, resets in
          guard state.resets[index] == resets else { return true }
          // A ticket that was issued later may have been recorded and answered first: it is not undone.
          return snapshot.order <= state.recordedOrder[index] && state.recordedResets[index] == resets
        }
        for (index, zone, _) in news.zones { zones[index] = zone }
        state.recording = zones
        return (zones, news)
      }
      guard let found else { return false }
      beforeWriting()
      let isWritten = file.record(found.zones)
      state.withLock { state in
        // A record whose writing failed may be on stable storage nevertheless, until another one is written in its place.
        guard isWritten else { return }
        state.recording = nil
        state.recorded = found.zones
        for (index, zone, resets) in found.snapshot.zones {
          state.recordedOrder[index] = max(state.recordedOrder[index], found.snapshot.order)
          guard state.resets[index] == resets else { continue }
          state.recordedResets[index] = resets
          state.stable[index] = max(state.stable[index], zone.written)
        }
      }
      return isWritten
    }
  }

  /// At the end of a disk, when nothing is in flight and everything is on stable storage: records the zones.
  func close() {
    guard state.withLock({ $0.isLoaded && $0.failure == nil }), file.isMine else { return }
    let ticket = ticket()
    if ticket > 0 { _ = record(ticket: ticket) }
  }
}

/// Records, as calls for helper threads.
struct ZoneRecorder: MediumCalls {
  let disk: ZonedDisk
  /// - Parameter operation: its offset is a ticket.
  func perform(_ operation: IOOperation) -> Int32 { disk.record(ticket: UInt32(operation.offset)) ? 0 : 1 }
}
