// What the server is started with. A sample of ropeway; Apache-2.0.
#pragma once
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "http.hpp"

/// What a server is started with.
class server_settings {
 public:
  std::filesystem::path vocabulary;
  std::filesystem::path socket_directory; ///< trainers are looked for here and nowhere else
  std::string socket; ///< the trainer to follow from the start; empty: none before the init
  std::string name = "inference-server"; ///< how the trainer's reports call it
  std::string token;                     ///< for control; empty: loopback peers only
  std::string address = "127.0.0.1";
  std::uint16_t port = 8311; ///< 0: any that is free
  std::size_t heads = 12;
  std::size_t longest = 256; ///< tokens of a text; what is beyond is cut off
  std::size_t workers = 1;   ///< requests that are computed at once

  http::limits message;
  std::size_t connections = 128;
  std::size_t waiting = 64;          ///< requests that wait for a worker, or while paused
  std::size_t tokens = 2048;         ///< of one request together: bounds how long it reads one version
  std::size_t texts = 64;            ///< of one request
  std::size_t indexed = 1000;        ///< texts of the index
  std::size_t text_bytes = 16384;    ///< of one text
  std::size_t model_bytes = 1 << 30; ///< of one version, of which it holds two; four while its tensors change
  std::chrono::milliseconds idle_limit{60000};    ///< of a connection between requests
  std::chrono::milliseconds request_limit{20000}; ///< for a request to arrive, and for an answer to be taken
  std::chrono::milliseconds wait_limit{60000};    ///< for a worker, or for the end of a pause
  std::chrono::milliseconds update_limit{60000};  ///< for what a control request waits for
  std::chrono::milliseconds name_limit{5000};     ///< an update that is offered waits so long to be named
  std::chrono::milliseconds lease_limit{8000};    ///< an update waits so long for readers of the old version
  std::chrono::milliseconds connect_limit{10000}; ///< for the trainer that an init names to be there
};

/// Throws std::runtime_error if the file can't be read, is open to other users, or holds no token.
std::string read_token(std::filesystem::path const& file);

/// Serves until SIGINT or SIGTERM; says on standard output where.
void serve(server_settings const& settings);
