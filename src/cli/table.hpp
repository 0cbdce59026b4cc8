// A table of text for people: columns as wide as they need to be. Part of ropeway; Apache-2.0.
#pragma once
#include <ostream>
#include <string>
#include <vector>

namespace ropeway::cli {

class table {
 public:
  /// A column whose title begins with '>' is set to the right.
  explicit table(std::vector<std::string> titles);
  /// As many cells as there are columns.
  void add(std::vector<std::string> cells);
  void print(std::ostream& out) const;

 private:
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

} // namespace ropeway::cli
