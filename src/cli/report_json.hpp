// Reports as JSON: the names that scripts rely on. Part of ropeway; Apache-2.0.
#pragma once
#include <boost/json/object.hpp>
#include <iosfwd>
#include <string>

#include "cli/exit_code.hpp"
#include "ropeway/checkpoint.hpp"
#include "ropeway/report.hpp"
#include "ropeway/watch_status.hpp"

namespace ropeway::cli {

/// Seconds by stage; those that did not occur are left out.
boost::json::object to_json(stage_times const& times);
/// `digest` may be empty: null.
boost::json::object to_json(send_report const& report, std::string const& digest);
boost::json::object to_json(load_report const& report, std::string const& digest);
boost::json::object to_json(watched_sender const& seen);
/// The same of a sender that is there no more, for the reason in "gone".
boost::json::object gone_json(std::string const& why);
boost::json::object to_json(checkpoint const& opened);

/// Text that may hold any bytes as JSON can carry it: what is no UTF-8 becomes U+FFFD.
boost::json::string json_text(std::string_view text);

/// Adds "exit" and "error" (null for none) and prints one line.
void print_report(std::ostream& out, boost::json::object report, int status, std::string const& error);

} // namespace ropeway::cli
