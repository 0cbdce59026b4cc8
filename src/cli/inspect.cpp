#include <exception>
#include <iostream>
#include <map>

#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/quantity.hpp"
#include "cli/report_json.hpp"
#include "cli/table.hpp"
#include "ropeway/checkpoint.hpp"

namespace ropeway::cli {
namespace {

void print_table(std::ostream& out, checkpoint const& opened) {
  table rows({"tensor", "dtype", "shape", ">bytes"});
  struct sum {
    std::size_t tensors = 0;
    std::uint64_t bytes = 0;
  };
  std::map<std::string_view, sum> by_type;
  for (auto const& stored : opened.tensors()) {
    rows.add({printable(stored.info.name), std::string(name(stored.info.type)), to_string(stored.info.dims),
              std::to_string(stored.bytes)});
    auto& total = by_type[name(stored.info.type)];
    ++total.tensors;
    total.bytes += stored.bytes;
  }
  rows.print(out);
  out << '\n';
  table totals({"dtype", ">tensors", ">bytes", ">size"});
  for (auto const& [type, total] : by_type)
    totals.add({std::string(type), std::to_string(total.tensors), std::to_string(total.bytes),
                size_text(total.bytes)});
  totals.add({"all", std::to_string(opened.tensors().size()), std::to_string(opened.total_bytes()),
              size_text(opened.total_bytes())});
  totals.print(out);
  for (auto const& [key, text] : opened.metadata())
    out << "metadata " << printable(key) << ": " << printable(text) << '\n';
  if (opened.files().size() > 1) out << "in " << opened.files().size() << " files\n";
  if (opened.unlisted() > 0) out << opened.unlisted() << " more tensors that the index does not list\n";
}

} // namespace

int inspect(inspect_arguments const& arguments) {
  auto const run = [&] {
    auto const opened = checkpoint::open(arguments.path);
    if (arguments.json)
      print_report(std::cout, to_json(opened), 0, {});
    else
      print_table(std::cout, opened);
    std::cout.flush();
    return 0;
  };
  return say(carry_out(run));
}

} // namespace ropeway::cli
