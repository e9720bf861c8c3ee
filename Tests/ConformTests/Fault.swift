/// Deliberate faults, of which a model of a correct device gets one.

enum Fault: String, CaseIterable, Sendable {
  // Life cycle.
  case statusSurvivesReset, statusForgetsBit, servesBeforeDriverOK, callsBeforeDriverOK, hidesFailure, failsWithoutNotice
  case staysBroken, callsAfterReset, servesAfterReset, diesAfterSomeLives, diesOfNeedsReset, failedIsForever, diesWithDriver
  // Features and configuration.
  case offersConfigWCEAlone, refusesSome, acceptsAnything, offersUnknownBit, refusesSecondTime, choiceIsNotFinal, noVersion1
  case diesWithoutVersion1, offersSRIOV, offersZoned, legacyZoned, lifetimeFails, reservedLifetime, configurationComesLate
  case wholeReadsOnly, paddingIsNotZero, secondQueueIsDead, generationRuns, resizeIsNotTold, generationStands
  case writebackWithoutFlush, writebackSticks, configurationIsWritable, diesBeyondConfiguration
  case suspendsEarly, neverResumes, servesSuspended, writesSuspended
  case suspendsInFlight, suspendsHalfway, usesSuspended, drainsOneQueue, drainsUncalled, drainsCalledOnce, callsSuspended
  case servesResetQueue, resetQueueKeepsPosition, offersAdminQueue, lostWithoutAccessPlatform, lostWithoutOrderPlatform
  // Legacy interfaces.
  case legacyIsRefused, legacyRingElsewhere, legacyForgetsConfiguration, noAnyLayout, offersBit30, flushOutIsUnknown
  case diesOfOddAccesses
  // Rings.
  case headerIsOneDescriptor, diesOfLongChains, writesReadable, writesDescriptors, indirectFails, refusesIndirectWrite
  case refusesMixedChains, shortTablesOnly, lengthTooLong, lengthIsZero, wrongIDs, stopsAfterLaps, bigRingsFail, ringOfOneHangs
  case idIsPosition, doesNotWrapChains, ignoresMarks, touchesUsedAgain, lengthAfterIndex, outOfOrder, servesNothing
  // Notification.
  case neverCalls, callsAlways, usedEventAlways, flagsAlways, onlyLastOfBatch, garbageUsedFlags, usedFlagsWithEventIndex
  case strandsRequests, diesOfManyKicks, diesOfStrangeEvents
  // Requests.
  case dropsWrites, tearsWrites, sectorsAreBlocks, noStatusOnErrors, unknownTypesFail, identityWithoutPadding, flushFails
  case readOnlySaysOK, readOnlyWrites, readOnlyRangesOK, queuesHaveDisks, ignoresFlags, zeroesNothing, oneSegmentOnly
  case discardsTooMuch, anyPayload, rangesAreNotChecked, oddLengthsOK, emptyRequestsHang, endsAreNotChecked, directionIsIgnored
  case sectorIsReadAgain, identityHangs, oldTypesWrite, statusIsAlone, diesOfEmptyDescriptors, diesOfRingWrites
  case writesNextToRings
  // Rare cases.
  case diesOfReservedStatus, diesOfSharedRings, diesOfOddTables, diesOfMarksInside, diesOfSameID, flushWrites
  // Zones.
  case zonesCanBeDeclined, zonedPadding, zonesHaveNoLimit, activeIsOpen, nothingIsClosed, commandsInside, appendsAnyway
  case appendsInside, conventionalCommands, longAppends, failedZonesWork, bordersAreOpen, fullTakesMore, writesAnywhere,
    anyGrain
  case overfills, refusalOpens, writesOpenExplicitly, pointerStays, neverFull, readsStale, resetAllWantsZero, resetAllForgets
  case resetAllRepairs, faultsAreIOErrors, openDoesNothing, emptyIsClosed, resetKeepsPointer, reportsFromTheFirst
  case appendSaysNothing
}
