"""Source, by language, that shows a value as one line of text: equal values of a test's type give equal lines. No torch.

Numbers are `n` and an integer or `f` and a float, texts `s` and their bytes in hexadecimal, lists and tuples stand in brackets, maps in the order
of their keys, nothing is `null`. A value of another type gives a text that no wanted value has.
"""

from __future__ import annotations

CPP = r"""
#include <any>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>
namespace rorqual_shown {
template <class T> struct Show {
    static std::string of(const T& v) {
        if constexpr (std::is_same_v<T, bool>) return v ? "true" : "false";
        else if constexpr (std::is_integral_v<T>) return "n" + std::to_string((long long)v);
        else if constexpr (std::is_floating_point_v<T>) {
            char text[64];
            std::snprintf(text, sizeof text, "f%a", v == 0 ? 0.0 : (double)v);
            return text;
        } else return "other";
    }
};
template <> struct Show<std::string> {
    static std::string of(const std::string& v) {
        std::string out = "s";
        char text[4];
        for (unsigned char c : v) { std::snprintf(text, sizeof text, "%02x", c); out += text; }
        return out;
    }
};
template <> struct Show<const char*> { static std::string of(const char* v) { return Show<std::string>::of(v); } };
template <class T> struct Show<std::optional<T>> {
    static std::string of(const std::optional<T>& v) { return v ? Show<T>::of(*v) : "null"; }
};
template <class A, class B> struct Show<std::pair<A, B>> {
    static std::string of(const std::pair<A, B>& v) { return "[" + Show<A>::of(v.first) + "," + Show<B>::of(v.second) + "]"; }
};
template <class... T> struct Show<std::tuple<T...>> {
    static std::string of(const std::tuple<T...>& v) {
        std::string out;
        std::apply([&](const auto&... one) { ((out += (out.empty() ? "" : ",") + Show<std::decay_t<decltype(one)>>::of(one)), ...); }, v);
        return "[" + out + "]";
    }
};
template <class T, class A> struct Show<std::vector<T, A>> {
    static std::string of(const std::vector<T, A>& v) {
        std::string out;
        for (const T& one : v) out += (out.empty() ? "" : ",") + Show<T>::of(one);
        return "[" + out + "]";
    }
};
template <class K, class V, class C, class A> struct Show<std::map<K, V, C, A>> {
    static std::string of(const std::map<K, V, C, A>& v) {
        std::string out;
        for (const auto& one : v) out += (out.empty() ? "" : ",") + Show<K>::of(one.first) + ":" + Show<V>::of(one.second);
        return "{" + out + "}";
    }
};
template <class T> void put(const char* mark, int number, const T& v) {
    std::printf("\n%s %d %s\n", mark, number, Show<T>::of(v).c_str());
    std::fflush(stdout);
}
}
"""

JAVA = r"""
class RorqualShown {
    static void put(String mark, int number, Object v) {
        System.out.println("\n" + mark + " " + number + " " + of(v));
        System.out.flush();
    }
    static String of(Object v) {
        if (v == null) return "null";
        if (v instanceof Boolean) return v.toString();
        if (v instanceof Float || v instanceof Double) {
            double d = ((Number) v).doubleValue();
            return "f" + (d == 0 ? 0.0 : d);
        }
        if (v instanceof Number) return "n" + v;
        if (v instanceof CharSequence || v instanceof Character) {
            StringBuilder out = new StringBuilder("s");
            for (byte b : v.toString().getBytes(java.nio.charset.StandardCharsets.UTF_8)) out.append(String.format("%02x", b));
            return out.toString();
        }
        if (v instanceof java.util.Optional) return ((java.util.Optional<?>) v).isPresent() ? of(((java.util.Optional<?>) v).get()) : "null";
        if (v instanceof java.util.Map) {
            java.util.TreeMap<String, String> sorted = new java.util.TreeMap<>();
            for (java.util.Map.Entry<?, ?> one : ((java.util.Map<?, ?>) v).entrySet()) sorted.put(of(one.getKey()), of(one.getValue()));
            java.util.List<String> parts = new java.util.ArrayList<>();
            for (java.util.Map.Entry<String, String> one : sorted.entrySet()) parts.add(one.getKey() + ":" + one.getValue());
            return "{" + String.join(",", parts) + "}";
        }
        if (v instanceof Iterable) {
            java.util.List<String> parts = new java.util.ArrayList<>();
            for (Object one : (Iterable<?>) v) parts.add(of(one));
            return "[" + String.join(",", parts) + "]";
        }
        try {
            java.lang.reflect.Method first = v.getClass().getDeclaredMethod("getValue0"), second = v.getClass().getDeclaredMethod("getValue1");
            first.setAccessible(true);
            second.setAccessible(true);
            return "[" + of(first.invoke(v)) + "," + of(second.invoke(v)) + "]";
        } catch (ReflectiveOperationException error) {
            return "other";
        }
    }
}
"""

CS = r"""
class RorqualShown {
    public static void Put(string mark, int number, object v) {
        Console.WriteLine("\n" + mark + " " + number + " " + Of(v));
    }
    static string Of(object v) {
        if (v == null) return "null";
        if (v is bool) return (bool)v ? "true" : "false";
        if (v is float || v is double) {
            double d = Convert.ToDouble(v);
            return "f" + (d == 0 ? 0.0 : d).ToString("R", System.Globalization.CultureInfo.InvariantCulture);
        }
        if (v is string || v is char) return "s" + BitConverter.ToString(System.Text.Encoding.UTF8.GetBytes(v.ToString())).Replace("-", "").ToLower();
        if (v is IConvertible) return "n" + Convert.ToInt64(v);
        if (v is System.Collections.IDictionary) {
            var parts = new System.Collections.Generic.List<string>();
            foreach (System.Collections.DictionaryEntry one in (System.Collections.IDictionary)v) parts.Add(Of(one.Key) + ":" + Of(one.Value));
            parts.Sort(StringComparer.Ordinal);
            return "{" + string.Join(",", parts.ToArray()) + "}";
        }
        if (v is System.Collections.IEnumerable) {
            var parts = new System.Collections.Generic.List<string>();
            foreach (object one in (System.Collections.IEnumerable)v) parts.Add(Of(one));
            return "[" + string.Join(",", parts.ToArray()) + "]";
        }
        var first = v.GetType().GetProperty("Item1");
        var second = v.GetType().GetProperty("Item2");
        if (first == null || second == null) return "other";
        return "[" + Of(first.GetValue(v, null)) + "," + Of(second.GetValue(v, null)) + "]";
    }
}
"""

JS = r"""
const rorqualShown = (() => {
  const of = (v) => {
    if (v === null || typeof v === "string" || typeof v === "boolean") return v;
    if (v === undefined) return { u: 1 };
    if (typeof v === "number") return Number.isFinite(v) && !Object.is(v, -0) ? v : { n: String(v) };
    if (Array.isArray(v)) return { a: Array.from(v, of) };
    if (typeof v === "object" && [Object.prototype, null].includes(Object.getPrototypeOf(v)))
      return { o: Object.keys(v).map((key) => [key, of(v[key])]) };
    return { x: 1 };
  };
  return (mark, number, v) => console.log("\n" + mark + " " + number + " " + JSON.stringify(of(v)));
})();
"""

RECEIVED = r"""
const received = (() => {
  const value = (v) => {
    if (v === null || typeof v !== "object") return v;
    if ("u" in v) return undefined;
    if ("n" in v) return Number(v.n);
    if ("a" in v) return v.a.map(value);
    if ("o" in v) return Object.fromEntries(v.o.map(([key, one]) => [key, value(one)]));
    return Symbol("other");
  };
  return JSON.parse(require("fs").readFileSync(0, "utf8")).map(value);
})();
"""


def statement(language: str, number: int, value: str, mark: str, of: str = "") -> str:
    """Shows `value`, source of that language, as line `number`; C++ converts it to the type of the call `of` where there is one."""
    match language:
        case "cpp":
            value = f"static_cast<std::decay_t<decltype({of})>>({value})" if of else f"({value})"
            return f'    rorqual_shown::put("{mark}", {number}, {value});'
        case "java":
            return f'    RorqualShown.put("{mark}", {number}, {value});'
        case "cs":
            return f'    RorqualShown.Put("{mark}", {number}, {value});'
        case "js" | "ts":
            return f'  rorqualShown("{mark}", {number}, {value});'
        case "php":
            return f'    echo "\\n{mark} {number} ", bin2hex(serialize({value})), "\\n";'
        case _:  # sh
            value = f'"$({value})"' if not of else value
            return f"    printf '\\n%s %s %q\\n' {mark} {number} {value}"
