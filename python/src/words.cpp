#include "words.hpp"

#include <array>
#include <asio/error.hpp>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <system_error>
#include <utility>
#include <vector>

#include "ropeway/error.hpp"
#include "ropeway/sender.hpp"

namespace ropeway::python {
namespace {

/// Something of a module of ours, looked up once and then kept for good.
nb::handle named(char const* module, char const* what) {
  return nb::object(nb::module_::import_(module).attr(what)).release();
}

/// A class of ours whose instances get their attributes here, without running its __init__: that takes longer
/// than the rest of an answer, and Python code can't be run where C++ may not be unwound (a daemon thread's
/// errors, while the interpreter ends).
class plain_class {
 public:
  /// Attributes in their order.
  plain_class(nb::handle type, std::vector<nb::handle> attributes)
      : type_(type), attributes_(std::move(attributes)) {}
  /// One of the frozen dataclasses of ropeway._reports.
  static plain_class report(char const* name) {
    nb::handle const type = named("ropeway._reports", name);
    std::vector<nb::handle> fields;
    for (nb::handle const field : type.attr("__dataclass_fields__"))
      fields.push_back(nb::borrow(field).release());
    return {type, std::move(fields)};
  }
  template <class... Values>
  nb::object operator()(Values&&... values) const {
    return with(nb::tuple(), std::forward<Values>(values)...);
  }
  /// `arguments` are those of __new__; a value for each attribute.
  template <class... Values>
  nb::object with(nb::tuple const& arguments, Values&&... values) const {
    std::array<nb::object, sizeof...(values)> const all{nb::cast(std::forward<Values>(values))...};
    if (all.size() != attributes_.size()) throw std::logic_error("the class has other attributes");
    auto* const type = reinterpret_cast<PyTypeObject*>(type_.ptr());
    nb::object made = nb::steal(type->tp_new(type, arguments.ptr(), nullptr));
    if (!made.is_valid()) throw nb::python_error();
    for (std::size_t i = 0; i < all.size(); ++i)
      if (PyObject_GenericSetAttr(made.ptr(), attributes_[i].ptr(), all[i].ptr()) != 0)
        throw nb::python_error();
    return made;
  }

 private:
  nb::handle type_;
  std::vector<nb::handle> attributes_;
};

std::vector<nb::handle> words(std::initializer_list<std::string_view> all) {
  std::vector<nb::handle> made;
  for (auto const one : all) made.push_back(text(one).release());
  return made;
}

std::vector<nb::handle> stage_words() {
  std::vector<nb::handle> made;
  for (auto const stage : all_stages) made.push_back(text(name(stage)).release());
  return made;
}

/// What is looked up in Python, once.
struct vocabulary {
  plain_class send_report = plain_class::report("SendReport"),
              receiver_report = plain_class::report("ReceiverReport"),
              load_report = plain_class::report("LoadReport"),
              weights_status = plain_class::report("WeightsStatus"),
              receiver_status = plain_class::report("ReceiverStatus"),
              connected_receiver = plain_class::report("ConnectedReceiver");
  plain_class transfer_error{named("ropeway._errors", "TransferError"),
                             words({"code", "tensor", "bucket", "peer", "peer_words", "report"})};
  std::vector<nb::handle> stages = stage_words();
  nb::handle errorcode = named("errno", "errorcode");
};
vocabulary const* known = nullptr; // kept for good

double seconds(nanoseconds time) { return std::chrono::duration<double>(time).count(); }

nb::object hex_or_none(std::optional<digest128> const& digest) {
  return digest ? text(to_string(*digest)) : nb::object(nb::none());
}

nb::object version_or_none(std::optional<std::uint64_t> version) {
  return version ? nb::object(nb::int_(*version)) : nb::object(nb::none());
}

nb::dict stages(stage_times const& times) {
  nb::dict all;
  for (std::size_t i = 0; i < all_stages.size(); ++i)
    if (auto const time = times[all_stages[i]]; time.count() != 0) all[known->stages[i]] = seconds(time);
  return all;
}

double since_epoch(std::chrono::system_clock::time_point time) {
  return std::chrono::duration<double>(time.time_since_epoch()).count();
}

nb::object code_of(std::error_code code) {
  if (code.category() == ropeway_category()) return text(name(static_cast<errc>(code.value())));
  if (code == asio::error::operation_aborted) return text("operation_aborted");
  if (code.category() == std::system_category() || code.category() == std::generic_category() ||
      code.category() == asio::error::get_system_category()) {
    nb::object const word = known->errorcode.attr("get")(code.value());
    if (!word.is_none()) return word;
  }
  return text(std::string(code.category().name()) + ":" + std::to_string(code.value()));
}

void raise(std::system_error const& error, transfer_error const* about, send_report const* report) {
  nb::object const raised = known->transfer_error.with(
      nb::make_tuple(text(error.what())), code_of(error.code()), about ? text(about->tensor()) : text(""),
      about && about->bucket() ? nb::object(nb::int_(*about->bucket())) : nb::object(nb::none()),
      about ? text(about->peer()) : text(""), about ? text(about->peer_words()) : text(""),
      report ? to_python(*report) : nb::object(nb::none()));
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(raised.ptr())), raised.ptr());
}

milliseconds limit_from(nb::handle value) {
  double const given = nb::cast<double>(value);
  // What is not finite, or too large for any clock, is the longest there is: a month.
  double const most = 30.0 * 24 * 3600;
  if (std::isnan(given) || given < 0) throw nb::value_error("a limit is a number of seconds, not below 0");
  return milliseconds(static_cast<std::int64_t>(std::ceil(std::min(given, most) * 1000)));
}

std::vector<uid_t> users_from(nb::handle value) {
  std::vector<uid_t> users;
  for (nb::handle const user : value) users.push_back(nb::cast<uid_t>(user));
  return users;
}

route_choice route_from(nb::handle value) {
  auto const word = text_of(value);
  if (auto const way = parse_route_choice(word)) return *way;
  throw nb::value_error(
      ("no route is called \"" + word + "\"; there are automatic, mapped, staged and host").c_str());
}

} // namespace

std::string text_of(nb::handle text) {
  Py_ssize_t size = 0;
  char const* const bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (!bytes) throw nb::python_error();
  return {bytes, static_cast<std::size_t>(size)};
}

nb::object text(std::string_view words) {
  return nb::steal(PyUnicode_DecodeUTF8(words.data(), static_cast<Py_ssize_t>(words.size()), "replace"));
}

nb::object to_python(send_report const& report) {
  auto const &make = known->send_report, &make_one = known->receiver_report;
  nb::list receivers;
  for (auto const& one : report.receivers)
    receivers.append(make_one(text(one.name), text(name(one.what)),
                              one.error ? code_of(one.error) : nb::object(nb::none()), text(one.text),
                              text(name(one.way)), text(one.route_reason), one.copied, seconds(one.after),
                              stages(one.stages)));
  return make(report.version, report.bytes, report.tensors, report.buckets, seconds(report.total),
              seconds(report.source_free), stages(report.stages), nb::tuple(receivers),
              hex_or_none(report.digest));
}

nb::object to_python(load_report const& report) {
  auto const& make = known->load_report;
  return make(report.version, report.bytes, report.tensors, report.buckets, report.copied,
              seconds(report.total), stages(report.stages), text(name(report.way)), text(report.route_reason),
              hex_or_none(report.digest), 0, nb::tuple());
}

nb::object to_python(weights_status const& status) {
  auto const& make = known->weights_status;
  return make(text(name(status.what)), version_or_none(status.version), version_or_none(status.arriving),
              since_epoch(status.since), text(status.from));
}

nb::object to_python(receiver_status const& status) {
  auto const& make = known->receiver_status;
  return make(text(name(status.phase)), version_or_none(status.version), version_or_none(status.arriving),
              since_epoch(status.since), text(status.sender), text(status.error));
}

nb::object to_python(connected_receiver const& receiver) {
  auto const& make = known->connected_receiver;
  return make(text(receiver.name),
              receiver.holds_version ? nb::object(nb::int_(receiver.version)) : nb::object(nb::none()));
}

ready_after ready_from(nb::handle when) {
  if (when.is_none()) return {};
  nb::tuple const parts = nb::cast<nb::tuple>(when);
  auto const handle = nb::cast<std::uintptr_t>(parts[1]);
  device const where = device::cuda(nb::cast<int>(parts[2]));
  // NOLINTNEXTLINE(performance-no-int-to-ptr): that is how Python carries them
  if (nb::cast<bool>(parts[0])) return after(reinterpret_cast<CUevent_st*>(handle), where);
  return after(reinterpret_cast<CUstream_st*>(handle), where);
}

namespace {

/// Calls `set` for each; what can't be taken for a knob's value is said with its name.
template <class Set>
void each_knob(nb::dict const& knobs, Set const& set) {
  for (auto const& [key, value] : knobs) {
    auto const knob = text_of(key);
    auto const refuse = [&, given = nb::handle(value)] {
      throw nb::type_error((knob + " can't be " + nb::repr(given).c_str()).c_str());
    };
    try {
      set(std::string_view(knob), nb::handle(value));
    } catch (std::bad_cast const&) { refuse(); } catch (nb::python_error& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      refuse();
    }
  }
}

} // namespace

sender_options sender_options_from(nb::dict const& knobs) {
  sender_options options;
  each_knob(knobs, [&](std::string_view knob, nb::handle value) {
    if (knob == "bucket_bytes") options.bucket_bytes(nb::cast<std::uint64_t>(value));
    if (knob == "slots") options.slots(nb::cast<std::uint32_t>(value));
    if (knob == "min_receivers") options.min_receivers(nb::cast<std::uint32_t>(value));
    if (knob == "max_receivers") options.max_receivers(nb::cast<std::uint32_t>(value));
    if (knob == "handshake_limit") options.handshake_limit(limit_from(value));
    if (knob == "decide_limit") options.decide_limit(limit_from(value));
    if (knob == "silence_limit") options.silence_limit(limit_from(value));
    if (knob == "commit_limit") options.commit_limit(limit_from(value));
    if (knob == "source_limit") options.source_limit(limit_from(value));
    if (knob == "close_limit") options.close_limit(limit_from(value));
    if (knob == "route") options.use_route(route_from(value));
    if (knob == "digests")
      options.digests(nb::cast<bool>(value) ? digest_choice::tensors : digest_choice::none);
    if (knob == "allowed_users") options.allowed_users(users_from(value));
    if (knob == "allow_shared_directory") options.allow_shared_directory(nb::cast<bool>(value));
  });
  return options;
}

receiver_options receiver_options_from(nb::dict const& knobs) {
  receiver_options options;
  copy_pace pace;
  each_knob(knobs, [&](std::string_view knob, nb::handle value) {
    if (knob == "name") options.name(text_of(value));
    if (knob == "device") {
      auto const word = text_of(value);
      auto const where = device::parse(word == "cpu" ? "host" : word);
      if (!where)
        throw nb::value_error(
            ("no device is called \"" + word + "\"; there are host (or cpu), cuda and cuda:N").c_str());
      options.where(*where);
    }
    if (knob == "group") options.group(text_of(value));
    if (knob == "group_size") options.group_size(nb::cast<std::uint32_t>(value));
    if (knob == "connect_limit") options.connect_limit(limit_from(value));
    if (knob == "handshake_limit") options.handshake_limit(limit_from(value));
    if (knob == "silence_limit") options.silence_limit(limit_from(value));
    if (knob == "lease_limit") options.lease_limit(limit_from(value));
    if (knob == "idle_mapping_limit")
      options.idle_mapping_limit(std::isinf(nb::cast<double>(value)) ? milliseconds::max()
                                                                     : limit_from(value));
    if (knob == "close_limit") options.close_limit(limit_from(value));
    if (knob == "route") options.use_route(route_from(value));
    if (knob == "demand_digests") options.demand_digests(nb::cast<bool>(value));
    if (knob == "most_blocks") pace.most_blocks(nb::cast<std::uint32_t>(value));
    if (knob == "bytes_per_second") pace.bytes_per_second(nb::cast<std::uint64_t>(value));
    if (knob == "max_manifest_bytes") options.max_manifest_bytes(nb::cast<std::uint64_t>(value));
    if (knob == "allowed_users") options.allowed_users(users_from(value));
    if (knob == "allow_shared_directory") options.allow_shared_directory(nb::cast<bool>(value));
  });
  options.pace(pace);
  return options;
}

void learn_words() {
  // Not at the first use: whoever waits for that, with the GIL, is waited for by who looks up, without it.
  if (!known) known = new vocabulary;
}

void translate_errors() {
  nb::register_exception_translator([](std::exception_ptr const& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (send_failed const& error) {
      raise(error, &error, &error.report());
    } catch (transfer_error const& error) {
      raise(error, &error, nullptr);
    } catch (std::system_error const& error) { raise(error, nullptr, nullptr); }
  });
}

} // namespace ropeway::python
