/// Finds keys that occur twice in an object of a JSON text: a decoder silently takes one of the values.
package import FoundationEssentials

package enum JSONKeys {
  /// - Parameter text: JSON that a decoder has accepted.
  /// - Returns: the first key that its object has already, and which element of the outermost array that object is in (0 for the
  ///   first); `nil` when there is none.
  package static func double(in text: Data) -> (element: Int, key: String)? {
    let bytes = Array(text)
    // For each object that is open, its keys so far; an array has none.
    var open: [Set<String>?] = []
    var expectsKey = false
    var element = 0
    var index = 0
    while index < bytes.count {
      let byte = bytes[index]
      index += 1
      switch byte {
      case UInt8(ascii: "{"):
        open.append([])
        expectsKey = true
      case UInt8(ascii: "["):
        open.append(nil)
        expectsKey = false
      case UInt8(ascii: "}"), UInt8(ascii: "]"):
        _ = open.popLast()
        expectsKey = false
      case UInt8(ascii: ","):
        if open.count == 1 { element += 1 }
        expectsKey = (open.last ?? nil) != nil
      case UInt8(ascii: ":"): expectsKey = false
      case UInt8(ascii: "\""):
        let start = index - 1
        while index < bytes.count, bytes[index] != UInt8(ascii: "\"") {
          index += bytes[index] == UInt8(ascii: "\\") ? 2 : 1
        }
        index += 1
        guard expectsKey, index <= bytes.count,
          // Escapes are other spellings of the same key.
          let key = try? JSONDecoder().decode(String.self, from: Data(bytes[start..<index]))
        else { continue }
        if open[open.count - 1]?.insert(key).inserted == false { return (element, key) }
      default: break
      }
    }
    return nil
  }
}
