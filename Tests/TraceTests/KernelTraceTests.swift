/// Lines of tracefs as requests of the kernel; invalid lines are ignored.
import Foundation
import Testing

@testable import TraceReport

@Suite struct KernelTraceTests {
  static let header = """
    # tracer: nop
    #
    # entries-in-buffer/entries-written: 9/12   #P:2
    #
    """

  static let text =
    header + """

                 queue 0-4479    [000] ..... 85945.350909: io_uring_submit_req: ring 00000000aa, req 00000000bb, user_data 0x7, opcode READ, flags 0x1, sq_thread 0
                 queue 0-4479    [000] ..... 85945.350911: io_uring_queue_async_work: ring 00000000aa, request 00000000bb, user_data 0x7, opcode READ, flags 0x1, normal queue, work 00000000cc
             iou-wrk-4-4480      [001] ..... 85945.350920: block_rq_issue: 254,0 R 4096 () 800 + 8 be,0,4 [iou-wrk-4]
                <idle>-0         [001] ..s1. 85945.351426: block_rq_complete: 254,0 R () 800 + 8 be,0,4 [0]
             iou-wrk-4-4480      [001] ..... 85945.351430: io_uring_complete: ring 00000000aa, req 00000000bb, user_data 0x7, result 4096, cflags 0x0 extra1 0 extra2 0
               a [b] c-77        [001] ..... 85945.351500: io_uring_submit_req: ring 00000000dd, req 00000000ee, user_data 0x1, opcode WRITE, flags 0x1, sq_thread 0
                 queue 0-4479    [000] ..... 85946.000001: io_uring_submit_req: ring 00000000aa, req 00000000bb, user_data 0x8, opcode FSYNC, flags 0x1, sq_thread 0
      """

  @Test func linesAreRequestsOfTheServersThreads() {
    let trace = KernelTrace(Self.text, threads: [4479])
    #expect(trace.lost == 3)
    #expect(
      trace.requests == [
        KernelRequest(
          layer: .ring, name: "READ", place: "4479", begin: 85_945_350_909_000, handedOver: 85_945_350_911_000,
          end: 85_945_351_430_000),
        KernelRequest(layer: .block, name: "R", place: "254,0", begin: 85_945_350_920_000, end: 85_945_351_426_000),
        KernelRequest(layer: .ring, name: "FSYNC", place: "4479", begin: 85_946_000_001_000),
      ])
    #expect(trace.lines.count == 3 && trace.lines[0].contains("2 requests, 521 µs each on average, 1 of them handed"))
  }

  /// A process may have any name.
  @Test func namesOfProcessesAreNotMistakenForTheRest() {
    #expect(KernelTrace(Self.text, threads: [77]).requests.map(\.place) == ["254,0", "77"])
  }

  /// How long a queue waited for a kick says nothing about requests.
  @Test func waitingForKicksIsNoRequestOfTheTable() {
    let trace = KernelTrace(Self.text.replacingOccurrences(of: "opcode FSYNC", with: "opcode POLL_ADD"), threads: [4479])
    #expect(trace.requests.count == 3 && trace.lines[0].contains("1 request, 521 µs each on average"))
  }

  @Test func itIsJSONBesideTheDevices() throws {
    let text = TraceEvents.json([ReportTests.disk(ReportTests.records)], kernel: KernelTrace(Self.text, threads: [4479]))
    let object = try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
    let events = try #require(object["traceEvents"] as? [[String: Any]])
    let ring = events.filter { $0["cat"] as? String == "io_uring" }
    #expect(ring.map { $0["ph"] as? String } == ["b", "b", "e", "e", "b"] && ring.allSatisfy { $0["pid"] as? Int == 2 })
    #expect(ring.first?["ts"] as? Double == 85_945_350_909)
    #expect(events.count { $0["name"] as? String == "process_name" } == 3)
  }

  @Test(arguments: [
    "", "#", "# entries-in-buffer/entries-written: x/y", "# entries-in-buffer/entries-written: 9/3",
    "a-1 [000] ..... 99999999999999999999.000001: io_uring_submit_req: ring a, req b",
    "a-1 [000] ..... 1.5: block_rq_issue: + +",
    "a-1 [000] ..... 1.000005: block_rq_issue: + 8", "a-1 [000] ..... 1.000005: io_uring_submit_req: ring", ": : : : : :",
    "a [000] ..... 1.000005: block_rq_issue: 1,2 R 1 () 3 + 4", "a-1 [000] ..... 1.000005:",
  ]) func whatMakesNoSenseIsLeftOut(_ text: String) {
    let trace = KernelTrace(text, threads: [1])
    #expect(trace.requests.isEmpty && trace.lost == 0)
  }
}
