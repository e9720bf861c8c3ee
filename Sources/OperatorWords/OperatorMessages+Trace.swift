/// What is said about traces.
package import VirtioBlkDevice

extension Operator {
  /// What is asked of a trace.
  package enum TraceAction: String, Codable, CaseIterable {
    /// Begin, in place of what was traced before.
    case start
    /// End it, and say what there is.
    case stop
    /// Some records of one thread.
    case read
    /// Nobody wants it any more.
    case drop
  }

  /// The answer to `trace` with `stop`.
  package struct Trace: Codable {
    package var disk: String
    package var image: String
    package var engine: String
    /// `TraceRecord.format` of who wrote it.
    package var format: Int
    package var start: TraceMoment
    package var end: TraceMoment
    package var threads: [TraceThread]
    /// Threads that have not answered, so that what they wrote cannot be read.
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
    /// Those that were before them and are gone.
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
