#include "cli/report_json.hpp"

#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>
#include <chrono>
#include <ostream>

#include "base/utf8.hpp"

namespace ropeway::cli {
namespace {

using boost::json::array;
using boost::json::object;
using boost::json::value;

double seconds(nanoseconds time) { return std::chrono::duration<double>(time).count(); }

double rate(std::uint64_t bytes, nanoseconds time) {
  return time.count() <= 0 ? 0.0 : static_cast<double>(bytes) / seconds(time);
}

value text_or_null(std::string const& text) { return text.empty() ? value(nullptr) : value(json_text(text)); }

} // namespace

boost::json::string json_text(std::string_view text) { return boost::json::string(as_utf8(text)); }

object to_json(stage_times const& times) {
  object out;
  for (auto const one : all_stages)
    if (times[one].count() != 0) out[name(one)] = seconds(times[one]);
  return out;
}

object to_json(send_report const& report, std::string const& digest) {
  array receivers;
  for (auto const& one : report.receivers) {
    object entry;
    entry["name"] = json_text(one.name);
    entry["outcome"] = name(one.what);
    entry["route"] = name(one.way);
    entry["route_reason"] = text_or_null(one.route_reason);
    entry["copied"] = one.copied;
    entry["seconds"] = seconds(one.after);
    entry["stages"] = to_json(one.stages);
    entry["error"] = one.error ? value(json_text(one.error.message())) : value(nullptr);
    entry["text"] = json_text(one.text);
    receivers.push_back(std::move(entry));
  }
  object out;
  out["version"] = report.version;
  out["bytes"] = report.bytes;
  out["tensors"] = report.tensors;
  out["buckets"] = report.buckets;
  out["seconds"] = seconds(report.total);
  out["source_free_seconds"] = seconds(report.source_free);
  out["stages"] = to_json(report.stages);
  out["bytes_per_second"] = rate(report.bytes, report.total);
  out["digest"] = text_or_null(digest);
  out["checked"] = report.digest.has_value();
  out["receivers"] = std::move(receivers);
  return out;
}

object to_json(load_report const& report, std::string const& digest) {
  object out;
  out["version"] = report.version;
  out["bytes"] = report.bytes;
  out["tensors"] = report.tensors;
  out["buckets"] = report.buckets;
  out["copied"] = report.copied;
  out["seconds"] = seconds(report.total);
  out["stages"] = to_json(report.stages);
  out["bytes_per_second"] = rate(report.bytes, report.total);
  out["route"] = name(report.way);
  out["route_reason"] = text_or_null(report.route_reason);
  out["digest"] = text_or_null(digest);
  out["checked"] = report.digest.has_value();
  return out;
}

object to_json(watched_sender const& seen) {
  array receivers;
  for (auto const& one : seen.receivers) {
    object entry;
    entry["name"] = json_text(one.name);
    entry["doing"] = name(one.doing);
    entry["version"] = one.version ? value(*one.version) : value(nullptr);
    entry["bytes_released"] = one.bytes_released;
    entry["last_bytes"] = one.last_bytes;
    entry["last_seconds"] = seconds(one.last_took);
    entry["last_error"] = text_or_null(one.last_error);
    entry["digest"] = one.digest ? value(to_string(*one.digest)) : value(nullptr);
    receivers.push_back(std::move(entry));
  }
  object out;
  out["sender"] = seen.id;
  out["last"] = nullptr;
  if (seen.last) out["last"] = {{"version", seen.last->version}, {"digest", to_string(seen.last->digest)}};
  out["updating"] = nullptr;
  if (auto const& running = seen.updating) {
    object update;
    update["version"] = running->version;
    update["bytes"] = running->bytes;
    update["tensors"] = running->tensors;
    update["buckets"] = running->buckets;
    update["packed"] = running->packed;
    update["seconds"] = seconds(running->since);
    out["updating"] = std::move(update);
  }
  out["receivers"] = std::move(receivers);
  return out;
}

object gone_json(std::string const& why) {
  object out;
  out["sender"] = nullptr;
  out["gone"] = json_text(why);
  out["last"] = nullptr;
  out["updating"] = nullptr;
  out["receivers"] = array();
  return out;
}

object to_json(checkpoint const& opened) {
  object metadata;
  for (auto const& [key, text] : opened.metadata()) metadata[json_text(key)] = json_text(text);
  array files;
  for (auto const& file : opened.files()) files.push_back(value(json_text(file.string())));
  array tensors;
  for (auto const& stored : opened.tensors()) {
    array dims;
    for (auto const extent : stored.info.dims.extents()) dims.push_back(extent);
    object entry;
    entry["name"] = json_text(stored.info.name);
    entry["dtype"] = name(stored.info.type);
    entry["shape"] = std::move(dims);
    entry["bytes"] = stored.bytes;
    entry["file"] = stored.file;
    entry["offset"] = stored.offset;
    tensors.push_back(std::move(entry));
  }
  object out;
  out["files"] = std::move(files);
  out["metadata"] = std::move(metadata);
  out["bytes"] = opened.total_bytes();
  out["unlisted"] = opened.unlisted();
  out["tensors"] = std::move(tensors);
  return out;
}

void print_report(std::ostream& out, object report, int status, std::string const& error) {
  report["exit"] = status;
  report["error"] = text_or_null(error);
  out << boost::json::serialize(report) << std::endl;
}

} // namespace ropeway::cli
