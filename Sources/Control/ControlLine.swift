/// The messages of a control socket: lines of JSON, some of them with descriptors.
internal import FoundationEssentials
public import VirtioCore

/// Why an exchange over a control socket failed. Each description is one sentence.
public enum ControlError: Error, Hashable, Sendable, CustomStringConvertible {
  case lineTooLong(limit: Int)
  case tooManyDescriptors(limit: Int)
  /// A line announced more descriptors than were received.
  case descriptorsMissing(said: Int, came: Int)
  /// The kernel dropped descriptors, because this process's descriptor table is full.
  case descriptorsLost
  case notUnderstood(String)
  case closed
  case socket(String)

  public var description: String {
    switch self {
    case .lineTooLong(let limit): "a line on the control socket is longer than \(limit) bytes"
    case .tooManyDescriptors(let limit): "more than \(limit) descriptors were received over the control socket at once"
    case .descriptorsMissing(let said, let came):
      "a line on the control socket says that it brings \(said) descriptors, and \(came) came"
    case .descriptorsLost:
      "descriptors were lost in transit over the control socket; raise the limit of open files (ulimit -n)"
    case .notUnderstood(let reason): "a line on the control socket is not understood: \(reason)"
    case .closed: "the other end of the control socket has closed the connection"
    case .socket(let reason): "the control socket failed: \(reason)"
    }
  }
}

/// One line: a JSON object and its descriptors, whose number is the object's member "descriptors".
public struct ControlLine: Sendable {
  /// Bytes of the longest line that is accepted.
  public static let maximumSize = 1 << 20
  /// The most descriptors that wait for the end of their line.
  public static let maximumDescriptors = 2048

  /// The JSON text, without a line feed.
  public let text: [UInt8]
  public let descriptors: [OwnedDescriptor]

  init(text: [UInt8], descriptors: [OwnedDescriptor]) {
    self.text = text
    self.descriptors = descriptors
  }

  /// - Parameters:
  ///   - body: a value that is encoded as a JSON object and has no member "descriptors".
  ///   - descriptors: at most `maximumDescriptors`.
  public init(_ body: some Encodable, descriptors: [OwnedDescriptor] = []) {
    precondition(descriptors.count <= Self.maximumDescriptors, "a control line has too many descriptors")
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    do {
      text = Array(try encoder.encode(Counted(body: body, count: descriptors.count)))
    } catch { preconditionFailure("numbers and texts can be encoded: \(error)") }
    self.descriptors = descriptors
  }

  public func decode<Body: Decodable>(_ type: Body.Type) throws(ControlError) -> Body {
    do { return try JSONDecoder().decode(type, from: Data(text)) } catch { throw .notUnderstood(Self.reason(error)) }
  }

  /// The number of descriptors that a line announces.
  static func descriptorCount(in text: [UInt8]) throws(ControlError) -> Int {
    do {
      let count = try JSONDecoder().decode(Count.self, from: Data(text)).descriptors ?? 0
      guard (0...maximumDescriptors).contains(count) else { throw ControlError.tooManyDescriptors(limit: maximumDescriptors) }
      return count
    } catch let error as ControlError { throw error } catch { throw .notUnderstood(reason(error)) }
  }

  private static func reason(_ error: any Error) -> String {
    switch error {
    case DecodingError.keyNotFound(let key, _): "\"\(printable(key.stringValue))\" is missing"
    case DecodingError.typeMismatch(_, let context), DecodingError.valueNotFound(_, let context),
      DecodingError.dataCorrupted(let context):
      context.codingPath.last.map { "\"\(printable($0.stringValue))\" has an invalid value" }
        ?? "it has to be a JSON object, with numbers that are whole and in range"
    default: "it has to be a JSON object"
    }
  }

  private struct Count: Decodable { var descriptors: Int? }

  private struct Counted<Body: Encodable>: Encodable {
    let body: Body
    let count: Int

    private enum Key: CodingKey { case descriptors }

    func encode(to encoder: any Encoder) throws {
      try body.encode(to: encoder)
      guard count > 0 else { return }
      var object = encoder.container(keyedBy: Key.self)
      try object.encode(count, forKey: .descriptors)
    }
  }
}
