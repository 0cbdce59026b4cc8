#include "bench.hpp"

namespace ropeway::test {
namespace {

template <class... F>
struct overloaded : F... {
  using F::operator()...;
};
template <class... F>
overloaded(F...) -> overloaded<F...>;

std::string reason(errc e, std::string const& text) {
  return "(" + std::to_string(static_cast<unsigned>(e)) + ") " + text;
}

} // namespace

std::string show(sender_action const& what) {
  using namespace send_action;
  return std::visit(
      overloaded{
          [](send_action::say const& a) { return to(a.to, a.what); },
          [](make_ring const& a) { return words("make ring ", a.ring); },
          [](pack const& a) {
            return words("pack seq ", a.seq, " bucket ", a.bucket, " slot ", a.slot,
                         a.unmapped_only ? " unmapped only" : "", a.beside_link ? " beside a link" : "");
          },
          [](await_source const&) { return std::string("await source"); },
          [](digest_source const&) { return std::string("digest source"); },
          [](send_parts const& a) {
            return words("send parts ", a.first, "+", a.count, " of segment ", a.segment, " to ", a.to);
          },
          [](relay const& a) {
            return words("relay seq ", a.seq, " from ", a.from, " to ", a.to, " bytes ", a.bytes);
          },
          [](send_action::cut const& a) { return words("cut ", a.peer); },
          [](drop const& a) { return words("drop ", a.peer, " ", reason(a.code, a.text)); },
          [](source_free const&) { return std::string("source free"); },
          [](drain const&) { return std::string("drain"); },
          [](deliver_held const&) { return std::string("deliver held"); },
          [](finished const& a) {
            std::string line = "finished " + reason(a.code, a.text);
            for (auto const& r : a.results)
              line +=
                  words("[", r.peer, " ", name(r.what), " (", r.code, ") ", r.text, r.mapped ? " mapped" : "",
                        " ring ", r.ring, r.route_reason.empty() ? "" : ", for ", r.route_reason, "]");
            return line;
          },
      },
      what);
}

std::string show(receiver_action const& what) {
  using namespace receive_action;
  return std::visit(
      overloaded{
          [](receive_action::say const& a) { return test::say(a.what); },
          [](greeted const& a) { return words("greeted ", a.bucket_bytes); },
          [](map_ring const& a) { return words("map ring ", a.what.id); },
          [](read_manifest const& a) {
            return words("read manifest of ", a.what.update, " bytes ", a.bytes);
          },
          [](look_up_manifest const& a) { return words("look up manifest of ", a.what.update); },
          [](look_up_placement const& a) { return words("look up placement ", a.what.placement); },
          [](read_placement const& a) {
            return words("read placement ", a.what.placement, " bytes ", a.bytes);
          },
          [](take_part const& a) {
            return words("take part ", a.what.part, " of segment ", a.what.segment,
                         a.last ? ", the last" : "");
          },
          [](receive_action::read_mapped const& a) { return words("read mapped ", a.update); },
          [](receive_action::unmap const& a) { return words("unmap ", a.segments.size()); },
          [](take_digest_table const& a) { return words("take table ", a.id, " bytes ", a.bytes); },
          [](check_digests const& a) { return words("check digests ", a.update); },
          [](offer const& a) { return words("offer ", a.what.update); },
          [](bucket const& a) {
            return words("bucket ", a.bucket, " of ", a.update, " seq ", a.seq, " ring ", a.ring, " slot ",
                         a.slot, " bytes ", a.bytes);
          },
          [](receive_action::look const& a) { return words("look ", a.update); },
          [](receive_action::commit const& a) { return words("commit ", a.update); },
          [](receive_action::abort const& a) {
            return words("abort ", a.update, a.by_peer ? " by sender " : " ", reason(a.code, a.text));
          },
          [](closed const& a) { return "closed " + reason(a.code, a.text); },
      },
      what);
}

} // namespace ropeway::test
