/// Traces in the messages of the control socket.
package import VirtioBlkDevice

extension Operator {
  /// What to do with a trace.
  package enum TraceAction: String, Codable, CaseIterable {
    /// Start it, in place of the previous one.
    case start
    /// End it, and report what was recorded.
    case stop
    /// Read some records of one thread.
    case read
    /// Discard it.
    case drop
  }

  /// The answer to `trace` with `stop`.
  package struct Trace: Codable {
    package var disk: String
    package var image: String
    package var engine: String
    /// The writer's `TraceRecord.format`.
    package var format: Int
    package var start: TraceMoment
    package var end: TraceMoment
    package var threads: [TraceThread]
    /// Threads that have not responded, so that their records cannot be read.
    package var silent: [Int]

    package init(
      disk: String, image: String, engine: String, format: Int, start: TraceMoment, end: TraceMoment, threads: [TraceThread],
      silent: [Int]
    ) {
      self.disk = disk
      self.image = image
      self.engine = engine
      self.format = format
      self.start = start
      self.end = end
      self.threads = threads
      self.silent = silent
    }
  }

  package struct TraceThread: Codable {
    package var thread: Int
    package var records: Int
    /// Earlier records that were overwritten.
    package var overwritten: UInt64

    package init(thread: Int, records: Int, overwritten: UInt64) {
      self.thread = thread
      self.records = records
      self.overwritten = overwritten
    }
  }

  /// The answer to `trace` with `read`.
  package struct TraceRecords: Codable {
    /// Whole records in base64; empty: there are no more.
    package var records: String

    package init(records: String) { self.records = records }
  }
}
