/// Which check catches which fault.
import Testing

struct Mutant: Sendable, CustomTestStringConvertible {
  var check: String
  var fault: Fault
  var kind: ModelTests.Kind
  var face: ModelFace

  init(_ check: String, _ fault: Fault, _ kind: ModelTests.Kind = .plain, on face: ModelFace = .modern) {
    self.check = check
    self.fault = fault
    self.kind = kind
    self.face = face
  }

  var testDescription: String { "\(check): \(fault)" }
}

enum Mutants {
  static let caught: [Mutant] = [
    // Life cycle.
    Mutant("status-after-reset", .statusSurvivesReset), Mutant("status-is-kept", .statusForgetsBit),
    Mutant("nothing-before-driver-ok", .servesBeforeDriverOK), Mutant("no-call-before-driver-ok", .callsBeforeDriverOK),
    Mutant("needs-reset", .hidesFailure), Mutant("needs-reset-is-told", .failsWithoutNotice),
    Mutant("reset-after-failure", .staysBroken), Mutant("silence-after-reset", .callsAfterReset),
    Mutant("rings-after-reset", .servesAfterReset), Mutant("many-lives", .diesAfterSomeLives),
    Mutant("resets-back-to-back", .diesAfterSomeLives), Mutant("driver-writes-needs-reset", .diesOfNeedsReset),
    Mutant("failed-status", .failedIsForever),
    // Features.
    Mutant("dependencies-are-offered", .offersConfigWCEAlone), Mutant("any-subset", .refusesSome),
    Mutant("unoffered-is-refused", .acceptsAnything), Mutant("nothing-unknown", .offersUnknownBit),
    Mutant("accepted-again", .refusesSecondTime), Mutant("choice-is-final", .choiceIsNotFinal),
    Mutant("version-1", .noVersion1),
    Mutant("without-version-1", .diesWithoutVersion1), Mutant("no-virtual-functions", .offersSRIOV),
    Mutant("flush-is-offered", .offersConfigWCEAlone), Mutant("flush-with-config-wce", .offersConfigWCEAlone),
    Mutant("not-zoned", .offersZoned), Mutant("no-zones-for-legacy", .legacyZoned),
    Mutant("access-platform-declined", .lostWithoutAccessPlatform),
    Mutant("order-platform-declined", .lostWithoutOrderPlatform), Mutant("no-admin-queue", .offersAdminQueue),
    Mutant("no-lifetime-of-files", .lifetimeFails), Mutant("lifetime-values", .reservedLifetime),
    // The configuration space.
    Mutant("early-configuration", .configurationComesLate), Mutant("configuration-by-pieces", .wholeReadsOnly),
    Mutant("unused-is-zero", .paddingIsNotZero), Mutant("number-of-queues", .secondQueueIsDead),
    Mutant("resize", .resizeIsNotTold), Mutant("writeback-without-flush", .writebackWithoutFlush),
    Mutant("writeback-toggles", .writebackSticks), Mutant("configuration-is-read-only", .configurationIsWritable),
    Mutant("configuration-beyond-the-end", .diesBeyondConfiguration), Mutant("generation-stands-still", .generationRuns),
    Mutant("generation-after-resize", .generationStands),
    Mutant("reset-queue-is-dead", .servesResetQueue), Mutant("reset-queue-starts-over", .resetQueueKeepsPosition),
    // Suspension.
    Mutant("suspended-early", .suspendsEarly), Mutant("suspend-and-resume", .neverResumes),
    Mutant("suspended-is-silent", .servesSuspended), Mutant("suspension-drains", .servesSuspended),
    Mutant("suspension-drains", .suspendsInFlight), Mutant("suspension-drains", .suspendsHalfway),
    Mutant("suspension-drains", .usesSuspended), Mutant("suspension-drains", .drainsOneQueue),
    Mutant("suspension-calls", .drainsUncalled), Mutant("suspension-calls", .drainsCalledOnce),
    Mutant("suspension-calls", .callsSuspended),
    Mutant("suspended-writeback", .writesSuspended), Mutant("suspended-resize", .resizeIsNotTold),
    // Legacy interfaces.
    Mutant("legacy-recognised", .legacyIsRefused, on: .mmioLegacy),
    Mutant("legacy-layout", .legacyRingElsewhere, on: .mmioLegacy),
    Mutant("legacy-early-configuration", .legacyForgetsConfiguration, on: .mmioLegacy),
    Mutant("legacy-any-layout", .noAnyLayout, on: .mmioLegacy), Mutant("legacy-bit-30", .offersBit30, on: .mmioLegacy),
    Mutant("legacy-flush-out", .flushOutIsUnknown, on: .mmioLegacy), Mutant("odd-accesses", .diesOfOddAccesses),
    // Framing.
    Mutant("any-framing", .headerIsOneDescriptor), Mutant("longest-chain", .diesOfLongChains),
    Mutant("readable-is-not-written", .writesReadable), Mutant("descriptors-are-not-written", .writesDescriptors),
    Mutant("indirect", .indirectFails), Mutant("indirect-with-write", .refusesIndirectWrite),
    Mutant("direct-then-indirect", .refusesMixedChains), Mutant("big-table", .shortTablesOnly),
    Mutant("length-is-written", .lengthTooLong), Mutant("length-is-exact", .lengthIsZero),
    // Order.
    Mutant("ids-come-back", .wrongIDs), Mutant("more-than-65536", .stopsAfterLaps), Mutant("ring-sizes", .bigRingsFail),
    Mutant("smallest-ring", .ringOfOneHangs), Mutant("opaque-ids", .idIsPosition),
    Mutant("chain-over-the-end", .doesNotWrapChains), Mutant("stale-laps", .ignoresMarks),
    Mutant("used-is-left-alone", .touchesUsedAgain), Mutant("length-before-index", .lengthAfterIndex),
    Mutant("in-order", .outOfOrder),
    // Notification.
    Mutant("flags-0-calls", .neverCalls), Mutant("flags-1-silences", .callsAlways),
    Mutant("used-event-without-feature", .usedEventAlways), Mutant("flags-with-event-index", .flagsAlways),
    Mutant("event-is-called", .neverCalls), Mutant("event-in-a-batch", .onlyLastOfBatch),
    Mutant("elsewhere-is-silent", .callsAlways), Mutant("used-flags", .garbageUsedFlags),
    Mutant("used-flags-with-event-index", .usedFlagsWithEventIndex), Mutant("enable-and-disable", .callsAlways),
    Mutant("call-at-a-descriptor", .callsAlways), Mutant("device-event-flags", .garbageUsedFlags),
    Mutant("kicks-only-when-asked", .strandsRequests), Mutant("kicks-only-at-events", .strandsRequests),
    Mutant("no-kick-at-all", .servesNothing), Mutant("kicks-for-nothing", .diesOfManyKicks),
    Mutant("one-call-is-enough", .neverCalls), Mutant("scribbled-events", .diesOfStrangeEvents),
    // Zones.
    Mutant("zoned-cannot-be-declined", .zonesCanBeDeclined, .zoned), Mutant("zoned-configuration", .zonedPadding, .zoned),
    Mutant("zone-report", .reportsFromTheFirst, .zoned), Mutant("zone-states", .writesOpenExplicitly, .zoned),
    Mutant("zone-states", .openDoesNothing, .zoned), Mutant("zone-states", .emptyIsClosed, .zoned),
    Mutant("zone-states", .resetKeepsPointer, .zoned), Mutant("zone-is-filled", .neverFull, .zoned),
    Mutant("zone-is-filled", .fullTakesMore, .zoned), Mutant("zone-overfilled", .overfills, .zoned),
    Mutant("write-at-the-pointer", .writesAnywhere, .zoned), Mutant("write-at-the-pointer", .anyGrain, .zoned),
    Mutant("write-at-the-pointer", .pointerStays, .zoned), Mutant("over-the-border", .bordersAreOpen, .zoned),
    Mutant("append", .appendSaysNothing, .zoned), Mutant("append", .appendsInside, .zoned),
    Mutant("append", .longAppends, .zoned),
    Mutant("no-append", .appendsAnyway, .noAppends), Mutant("open-zones", .zonesHaveNoLimit, .zoned),
    Mutant("open-zones", .refusalOpens, .zoned), Mutant("active-zones", .activeIsOpen, .zoned),
    Mutant("implicit-close", .nothingIsClosed, .zoned), Mutant("unwritten-is-not-stale", .readsStale, .zoned),
    Mutant("conventional-zones", .conventionalCommands, .zoned), Mutant("failed-zones", .failedZonesWork, .zoned),
    Mutant("failed-zones", .resetAllRepairs, .zoned), Mutant("reset-all", .resetAllForgets, .zoned),
    Mutant("reset-all", .resetAllWantsZero, .zoned), Mutant("zone-faults", .faultsAreIOErrors, .zoned),
    Mutant("zone-faults", .commandsInside, .zoned),
    // Requests.
    Mutant("read-and-write", .dropsWrites), Mutant("many-blocks", .tearsWrites), Mutant("units", .sectorsAreBlocks),
    Mutant("status-is-always-written", .noStatusOnErrors), Mutant("unknown-types", .unknownTypesFail),
    Mutant("no-zone-requests", .unknownTypesFail), Mutant("no-lifetime", .unknownTypesFail, .noLifetime),
    Mutant("identity", .identityWithoutPadding), Mutant("flush", .flushFails),
    Mutant("read-only-is-refused", .readOnlySaysOK, .readOnly), Mutant("read-only-stays", .readOnlyWrites, .readOnly),
    Mutant("read-only-ranges", .readOnlyRangesOK, .readOnly), Mutant("two-queues-one-place", .queuesHaveDisks),
    Mutant("discard-flags", .ignoresFlags), Mutant("discard-unmap", .ignoresFlags), Mutant("write-zeroes-flags", .ignoresFlags),
    Mutant("secure-erase-flags", .ignoresFlags), Mutant("write-zeroes", .zeroesNothing),
    Mutant("many-segments", .oneSegmentOnly), Mutant("discard", .discardsTooMuch), Mutant("range-payload", .anyPayload),
    Mutant("range-ends", .rangesAreNotChecked), Mutant("odd-lengths", .oddLengthsOK),
    Mutant("nothing-to-read", .emptyRequestsHang), Mutant("beyond-the-end", .endsAreNotChecked),
    Mutant("wrong-direction", .directionIsIgnored), Mutant("identity-of-other-sizes", .identityHangs),
    Mutant("old-types", .oldTypesWrite), Mutant("shared-status", .statusIsAlone),
    // Violations by the driver.
    Mutant("index-far-ahead", .staysBroken), Mutant("index-backwards", .staysBroken), Mutant("head-out-of-range", .staysBroken),
    Mutant("next-out-of-range", .staysBroken), Mutant("loop", .staysBroken), Mutant("same-head-twice", .staysBroken),
    Mutant("empty-descriptor", .diesOfEmptyDescriptors), Mutant("only-empty-descriptors", .staysBroken),
    Mutant("more-than-4-gib", .staysBroken), Mutant("table-length", .staysBroken), Mutant("nested-table", .staysBroken),
    Mutant("table-with-next", .staysBroken), Mutant("table-not-negotiated", .staysBroken),
    Mutant("table-nowhere", .staysBroken),
    Mutant("loop-in-a-table", .staysBroken), Mutant("next-beyond-the-table", .staysBroken),
    Mutant("readable-after-writable", .staysBroken), Mutant("buffer-nowhere", .staysBroken),
    Mutant("ring-nowhere", .staysBroken),
    Mutant("ring-size", .staysBroken), Mutant("short-header", .staysBroken), Mutant("no-status", .staysBroken),
    Mutant("changing-header", .sectorIsReadAgain),
    Mutant("buffer-in-the-ring", .diesOfRingWrites), Mutant("dies-in-flight", .diesWithDriver),
    Mutant("resets-in-flight", .servesAfterReset), Mutant("garbage-rings", .staysBroken),
    // Rare cases.
    Mutant("odd-status-steps", .statusSurvivesReset), Mutant("odd-status-steps", .diesOfReservedStatus),
    Mutant("reset-queue-in-flight", .servesResetQueue), Mutant("rings-share-a-place", .diesOfSharedRings),
    Mutant("table-anywhere", .diesOfOddTables), Mutant("marks-inside-a-list", .diesOfMarksInside),
    Mutant("same-id-twice", .diesOfSameID), Mutant("overlapping-segments", .oneSegmentOnly),
    Mutant("flush-with-data", .flushWrites),
  ]

  /// Checks that were not seen to fail, with the reason. This list may only become shorter.
  static let none: [String: String] = [:]
}
