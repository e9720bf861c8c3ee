/// The mailbox: the driver's register accesses, one after the other.
internal import CLinux
internal import VirtioCore
internal import VirtioRegisters

extension MemoryFileDevice {
  /// Answers the driver's requests. A driver can send them without pause, so the loop is bounded, and the event loop comes back
  /// for the rest.
  /// - Returns: false if there may be more.
  func serveMailbox() -> Bool {
    let control = file.control
    for _ in 0..<64 {
      // A request that is still being executed is answered first.
      guard phase == .serving, whenCarriedOut == nil else { return true }
      let sequence = control.requestSequence.loadAcquire()
      guard sequence != answered else { return true }
      // Each word is read once; the request in the file is not read again while it is executed.
      let offset = control.requestOffset.loadRelaxed()
      let width = control.requestWidth.loadRelaxed()
      let isWrite = control.requestWrite.loadRelaxed()
      let value = control.requestValue.loadRelaxed()
      if ![1, 2, 4, 8].contains(width) || isWrite > 1 {
        answer(sequence, 0, ControlBlock.ResponseStatus.refused)
      } else if isWrite == 1 {
        let effects = registers.write(offset: offset, width: Int(width), value: value)
        registerWatch?.accessed(RegisterAccess(offset: offset, width: Int(width), isWrite: true, value: value))
        carryOut(effects) {
          // Before the answer: a successor must find everything that the driver takes for done.
          self.storeState()
          self.answer(sequence, 0, ControlBlock.ResponseStatus.done)
        }
      } else {
        let (found, effects) = registers.read(offset: offset, width: Int(width))
        registerWatch?.accessed(RegisterAccess(offset: offset, width: Int(width), isWrite: false, value: found))
        carryOut(effects) { self.answer(sequence, found, ControlBlock.ResponseStatus.done) }
      }
    }
    return false
  }

  private func answer(_ sequence: UInt32, _ value: UInt64, _ status: UInt32) {
    let control = file.control
    control.responseValue.storeRelaxed(value)
    control.responseStatus.storeRelaxed(status)
    answered = sequence
    control.responseSequence.storeRelease(sequence)
    _ = unsafe clinux_futex_wake(control.responseSequence.address, Int32.max)
  }
}
