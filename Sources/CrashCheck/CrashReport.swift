/// What a check of durability found.
public import VirtioBlkDevice

/// A sector of an image that breaks a promise to the driver.
public struct CrashViolation: Hashable, Sendable, CustomStringConvertible {
  public var mode: CrashMode
  public var engine: EngineKind
  /// The seed of the run in which it was found.
  public var seed: UInt64
  /// The number of events before the power failed.
  public var event: Int
  public var sector: Int
  public var promised: String
  public var found: String

  public var description: String {
    "\(mode.rawValue), engine \(engine.rawValue), run \(seed), power failed after event \(event): sector \(sector) holds "
      + "\(found); promised: \(promised)"
  }
}

/// The counts of the runs with one mode and one engine, or of all runs.
public struct CrashFigures: Hashable, Sendable {
  public var runs = 0
  public var requests = 0
  public var flushes = 0
  /// Moments at which the power failed.
  public var points = 0
  /// Those at which all images that are possible with whole changes were checked.
  public var exhaustivePoints = 0
  public var images = 0
  public var violatedImages = 0

  public static func += (one: inout CrashFigures, other: CrashFigures) {
    one.runs += other.runs
    one.requests += other.requests
    one.flushes += other.flushes
    one.points += other.points
    one.exhaustivePoints += other.exhaustivePoints
    one.images += other.images
    one.violatedImages += other.violatedImages
  }
}

public struct CrashReport: Sendable {
  public struct Row: Sendable {
    public var mode: CrashMode
    public var engine: EngineKind
    public var figures: CrashFigures
  }

  public var rows: [Row] = []
  /// The first few.
  public var violations: [CrashViolation] = []
  static let violationLimit = 8

  public var total: CrashFigures { rows.reduce(into: CrashFigures()) { $0 += $1.figures } }

  mutating func add(_ figures: CrashFigures, _ mode: CrashMode, _ engine: EngineKind) {
    if let place = rows.firstIndex(where: { $0.mode == mode && $0.engine == engine }) {
      rows[place].figures += figures
    } else {
      rows.append(Row(mode: mode, engine: engine, figures: figures))
    }
  }
}

/// Why a check could not be run.
public enum CrashCheckError: Error, CustomStringConvertible {
  case noScratch(path: String, reason: String)
  case noEngine
  case badLog(path: String, String)
  case plantNeedsSync
  /// The file does not match its record: the sector, and what each of them holds.
  case incompleteRecord(sector: Int, recorded: String, found: String, seed: UInt64)

  public var description: String {
    switch self {
    case .noScratch(let path, let reason):
      "no image can be created in \(path): \(reason); name a folder with room for one with --folder"
    case .badLog(let path, let reason): "\(path) cannot be used: \(reason)"
    case .noEngine: "none of the engines can be used here: name another one with --engine"
    case .plantNeedsSync: "faults are planted around plain system calls: leave out --engine, or use --engine sync"
    case .incompleteRecord(let sector, let recorded, let found, let seed):
      "the record of run \(seed) is not complete: sector \(sector) holds \(found), and the record says \(recorded)"
    }
  }
}
