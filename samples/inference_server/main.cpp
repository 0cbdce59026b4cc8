// The server's command line: `--name value`, any number of times. A sample of ropeway; Apache-2.0.
#include <charconv>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>

#include "settings.hpp"

namespace {

constexpr char const* usage =
    R"(usage: inference_server --vocab FILE [--OPTION VALUE]...
Sentence embeddings over HTTP, by a BERT model whose weights a trainer sends (docs/serving.md).
  --vocab FILE         the WordPiece vocabulary, one token a line
  --socket-dir FOLDER  where trainers' sockets lie; no other is connected to
  --socket NAME        follow the trainer with this name there, from the start
  --name NAME          how the trainer's reports call this server (inference-server)
  --address ADDRESS    where to listen (127.0.0.1)
  --port N             0 takes any that is free (8311)
  --token-file FILE    holds the token that control requests must bear
  --heads N            attention heads of the model (12)
  --longest N          tokens of a text; what is beyond is cut off (256)
  --workers N          requests that are computed at once (1)
  --connections N      most connections (128)
  --waiting N          most requests that wait (64)
  --indexed N          most texts of the index (1000)
)";

template <class Number>
void read(std::string_view option, std::string_view value, Number& into) {
  auto const [end, error] = std::from_chars(value.data(), value.data() + value.size(), into);
  if (error != std::errc() || end != value.data() + value.size())
    throw std::invalid_argument(std::string(option) + " takes a number, not '" + std::string(value) + "'");
}

void take(std::string_view option, std::string const& value, server_settings& into) {
  if (option == "--vocab")
    into.vocabulary = value;
  else if (option == "--socket-dir")
    into.socket_directory = value;
  else if (option == "--socket")
    into.socket = value;
  else if (option == "--name")
    into.name = value;
  else if (option == "--address")
    into.address = value;
  else if (option == "--token-file")
    into.token = read_token(value);
  else if (option == "--port")
    read(option, value, into.port);
  else if (option == "--heads")
    read(option, value, into.heads);
  else if (option == "--longest")
    read(option, value, into.longest);
  else if (option == "--workers")
    read(option, value, into.workers);
  else if (option == "--connections")
    read(option, value, into.connections);
  else if (option == "--waiting")
    read(option, value, into.waiting);
  else if (option == "--indexed")
    read(option, value, into.indexed);
  else
    throw std::invalid_argument("there is no option " + std::string(option) + "; --help lists them");
}

} // namespace

int main(int argc, char** argv) try {
  server_settings settings;
  for (int i = 1; i < argc; i += 2) {
    std::string_view const option = argv[i];
    if (option == "-h" || option == "--help") {
      std::fputs(usage, stdout);
      return 0;
    }
    if (i + 1 == argc) throw std::invalid_argument(std::string(option) + " needs a value");
    take(option, argv[i + 1], settings);
  }
  if (settings.vocabulary.empty()) throw std::invalid_argument("--vocab is needed; --help lists the rest");
  serve(settings);
  return 0;
} catch (std::invalid_argument const& error) {
  std::fprintf(stderr, "inference_server: %s\n", error.what());
  return 2;
} catch (std::exception const& error) {
  std::fprintf(stderr, "inference_server: %s\n", error.what());
  return 1;
}
