/// The driver's register accesses, one after the other.
internal import CLinux
internal import VirtioCore
internal import VirtioRegisters

extension MemoryFileDevice {
  /// Answers what is asked, one thing after the other. A driver can ask without pause, so the loop ends by itself and the
  /// poll looks at the rest.
  /// - Returns: false when there may be more.
  func serveMailbox() -> Bool {
    let control = file.control
    for _ in 0..<64 {
      // What is being executed still is answered first.
      guard phase == .serving, whenCarriedOut == nil else { return true }
      let sequence = control.requestSequence.loadAcquire()
      guard sequence != answered else { return true }
      // Each word is read once; nothing in the file is looked at again while the request is executed.
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
          // Before the answer: what the driver believes done, a successor must find.
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
