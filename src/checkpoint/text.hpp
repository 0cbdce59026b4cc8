// Foreign text in our messages. Part of ropeway; Apache-2.0.
#pragma once
#include <string>
#include <string_view>

namespace ropeway {

/// `text` in double quotes, fit for one line: control bytes as \xNN, and only the ends of a long text.
std::string in_quotes(std::string_view text);

} // namespace ropeway
