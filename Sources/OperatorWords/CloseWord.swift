/// Finds the known word that an unknown one was probably meant to be.
package enum CloseWord {
  /// The word that was probably meant: one that begins with it, or one that differs in few letters.
  package static func find(to word: String, among words: [String]) -> String? {
    let words = words.sorted()
    if word.count > 4, let longer = words.first(where: { $0.hasPrefix(word) }) { return longer }
    let near = words.map { (distance: distance(Array(word), Array($0)), word: $0) }.min { $0.distance < $1.distance }
    guard let near, near.distance <= max(1, word.drop { $0 == "-" }.count / 3) else { return nil }
    return near.word
  }

  /// The edit distance: how many letters to insert, delete or change, or neighbours to swap, to turn one into the other.
  private static func distance(_ one: [Character], _ other: [Character]) -> Int {
    // Nobody means a word that is many times as long.
    guard one.count <= 64 else { return .max }
    var before: [Int] = []
    var last = Array(0...other.count)
    for row in 1...max(one.count, 1) where row <= one.count {
      var next = [row]
      for column in 1...max(other.count, 1) where column <= other.count {
        let isSame = one[row - 1] == other[column - 1]
        var best = min(last[column] + 1, next[column - 1] + 1, last[column - 1] + (isSame ? 0 : 1))
        if row > 1, column > 1, one[row - 1] == other[column - 2], one[row - 2] == other[column - 1] {
          best = min(best, before[column - 2] + 1)
        }
        next.append(best)
      }
      (before, last) = (last, next)
    }
    return last[other.count]
  }
}
