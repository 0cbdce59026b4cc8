// What trainer.cpp and server.cpp hold: a model's tensors in host memory, and a digest to compare two of them
// by. A sample of ropeway; Apache-2.0.
#pragma once
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <ropeway/ropeway.hpp>
#include <span>
#include <string>
#include <vector>

class model {
 public:
  explicit model(std::span<ropeway::tensor_info const> infos) {
    for (auto const& info : infos) {
      auto const bytes = ropeway::byte_size(info.type, info.dims).value();
      tensors_.push_back({info, bytes, std::make_unique_for_overwrite<std::byte[]>(bytes)});
    }
  }

  /// Views for sending from, and for loading into. They hold good as long as the model does.
  std::vector<ropeway::tensor_view> views() const { return all<ropeway::tensor_view>(); }
  std::vector<ropeway::mutable_tensor_view> mutable_views() { return all<ropeway::mutable_tensor_view>(); }

  /// A training step, as far as this sample goes: every element of every tensor changes.
  void step(std::uint64_t number) {
    for (auto& tensor : tensors_) {
      if (tensor.info.type == ropeway::dtype::f32) {
        std::span const values(reinterpret_cast<float*>(tensor.data.get()), tensor.bytes / sizeof(float));
        for (auto& value : values) value = value * 0.999f + 1e-4f * static_cast<float>(number);
      } else {
        auto const element = std::max<std::size_t>(ropeway::bits(tensor.info.type) / 8, 1);
        for (std::size_t i = 0; i < tensor.bytes; i += element)
          tensor.data[i] = static_cast<std::byte>(std::to_integer<unsigned>(tensor.data[i]) + 1);
      }
    }
  }

  /// XXH3-128 over names, dtypes, shapes and bytes: equal for two processes if they hold the same.
  std::string digest() const {
    struct deleter {
      void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
    };
    std::unique_ptr<XXH3_state_t, deleter> const state(XXH3_createState());
    XXH3_128bits_reset(state.get());
    for (auto const& tensor : tensors_) {
      std::string const head =
          tensor.info.name + '\0' + std::string(name(tensor.info.type)) + to_string(tensor.info.dims);
      XXH3_128bits_update(state.get(), head.data(), head.size() + 1);
      XXH3_128bits_update(state.get(), tensor.data.get(), tensor.bytes);
    }
    auto const hash = XXH3_128bits_digest(state.get());
    std::array<char, 33> text{};
    std::snprintf(text.data(), text.size(), "%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                  static_cast<unsigned long long>(hash.low64));
    return text.data();
  }

 private:
  struct owned_tensor {
    ropeway::tensor_info info;
    std::uint64_t bytes;
    std::unique_ptr<std::byte[]> data;
  };
  template <class View>
  std::vector<View> all() const {
    std::vector<View> views;
    for (auto const& one : tensors_)
      views.emplace_back(one.info.name, one.info.type, one.info.dims, one.data.get());
    return views;
  }
  std::vector<owned_tensor> tensors_;
};
