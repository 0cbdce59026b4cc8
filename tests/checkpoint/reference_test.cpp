// reference.safetensors was written by the reference implementation (the Python package safetensors 0.8.0,
// `save_file` of six numpy arrays); its tensors' values stand below.
#include <doctest/doctest.h>

#include <cstring>

#include "files.hpp"
#include "ropeway/checkpoint_writer.hpp"

using namespace ropeway;
using namespace ropeway::test;

namespace {

template <class Value>
std::vector<Value> values(checkpoint const& model, std::string_view name) {
  auto const at = model.find(name);
  REQUIRE(at);
  std::vector<std::byte> bytes(static_cast<std::size_t>(model.tensors()[*at].bytes));
  checkpoint_reader(model).read(*at, 0, bytes);
  std::vector<Value> result(bytes.size() / sizeof(Value));
  if (!bytes.empty()) std::memcpy(result.data(), bytes.data(), bytes.size());
  return result;
}

} // namespace

TEST_CASE("a file of the reference implementation is read") {
  auto const model = checkpoint::open(ROPEWAY_TEST_REFERENCE);
  CHECK(model.tensors().size() == 6);
  CHECK(model.metadata() == checkpoint_metadata{{"format", "np"}, {"note", "f\xC3\xBCr"}});
  CHECK(values<float>(model, "weight") == std::vector<float>{0, 1, 2, 3, 4, 5});
  CHECK(model.tensors()[*model.find("weight")].info.dims == shape{2, 3});
  CHECK(values<std::uint16_t>(model, "bias") ==
        std::vector<std::uint16_t>{0x3E00, 0xC000}); // 1.5 and -2 as f16
  CHECK(values<std::int64_t>(model, "step") == std::vector<std::int64_t>{7});
  CHECK(model.tensors()[*model.find("step")].info.dims == shape{});
  CHECK(values<std::uint8_t>(model, "mask") == std::vector<std::uint8_t>{1, 0, 1});
  CHECK(values<std::int16_t>(model, "\xC3\xA9\"\\") == std::vector<std::int16_t>{1, 2, 3});
  CHECK(values<std::uint8_t>(model, "empty").empty());
}

TEST_CASE("the writer makes the same file as the reference implementation, byte for byte") {
  scratch const here;
  auto const model = checkpoint::open(ROPEWAY_TEST_REFERENCE);
  std::vector<tensor_info> infos;
  for (auto const& tensor : model.tensors())
    infos.insert(infos.begin(), tensor.info); // the order is the writer's
  checkpoint_writer writer(here / "copy.safetensors", infos, model.metadata());
  checkpoint_reader reader(model);
  for (std::size_t i = 0; i < infos.size(); ++i) {
    std::size_t const at = *model.find(infos[i].name);
    std::vector<std::byte> bytes(static_cast<std::size_t>(model.tensors()[at].bytes));
    reader.read(at, 0, bytes);
    writer.write(i, 0, bytes);
  }
  writer.commit();
  CHECK(read_file(here / "copy.safetensors") == read_file(ROPEWAY_TEST_REFERENCE));
}
