/// The effects of a session, which its owner executes.
public import VirtioCore

/// One step for the shell around a `BackendSession`. The outcomes of those that say "answered" are reported to the session
/// before its next effect is pulled. `start`, `stop`, `withdraw`, `map`, `mapInflight`, `forgetInflight`, `mapLog` and
/// `examine` may take arbitrarily long: in the meantime the shell pulls nothing more from this session, and all other
/// sessions continue.
public enum Effect: Sendable {
  /// Send this to the front-end.
  case reply(Message)
  /// Fix the device's features. Answered with `negotiated`.
  case negotiate(FeatureSet)
  /// Map and unmap guest memory. Answered with `mapped`.
  case map(MemoryPlan)
  /// Map a dirty log. Answered with `logMapped`.
  case mapLog(LogPlan)
  /// Create memory for in-flight records. Answered with `inflightCreated`.
  case createInflight(queueCount: Int, queueSize: UInt16, isPacked: Bool)
  /// Map in-flight records that the front-end kept. Answered with `inflightMapped`.
  case mapInflight(InflightPlan)
  /// Clear the records of all queues, or of one queue if nothing in its record is in flight. No queue is using them.
  case forgetInflight(InflightMemory, queue: Int?)
  /// Examine a descriptor that the front-end sent. Answered with `examined`.
  case examine(DescriptorExamination)
  /// Start a queue. Answered with `started`.
  case start(Activation)
  /// Stop a queue and everything in flight on it. Answered with `stopped`.
  case stop(queue: Int)
  /// Put translations in force for a running queue. - refused: an access that it requested and that is not allowed.
  case translate(queue: Int, Translations, refused: TranslationMiss?)
  /// Take translations back from running queues. Answered with `withdrawn` when all of them have given them up.
  case withdraw(queues: [Int], Withdrawal)
  case replaceCall(queue: Int, CallSink)
  case replaceFailure(queue: Int, CallSink)
  /// Signal once, for a queue that the device does not run.
  case signal(CallSink)
  /// Answered with `configurationRead`.
  case readConfiguration(offset: Int, count: Int)
  /// A driver's write, or, if `restores`, a migration that writes back the present configuration. Answered with
  /// `configurationWritten`.
  case writeConfiguration(offset: Int, [UInt8], restores: Bool)
  /// Reset the device to its initial state; its queues are stopped.
  case resetDevice
  /// Use this socket for requests of the back-end from now on.
  case openChannel(OwnedDescriptor)
  /// Send this on that socket.
  case send(Message)
  /// For the log: a message was refused, and the connection continues.
  case refused(request: UInt32, Refusal)
  /// For the log: a queue could not be started, and its err descriptor was signalled.
  case queueRefused(queue: Int, Refusal)
  /// Close the connection, for this reason.
  case close(request: UInt32, Refusal)
}
